"Circuits on NVIDIA GPUs: the device engine on CUDA.jl's arrays. Its kernels are launched by KernelAbstractions.jl, which CUDA.jl loads."
module LVDJuiceCUDAExt

using CUDA: CUDA, CuArray
using LVDJuice: LVDJuice, Device

function LVDJuice.backend(::Val{:cuda})
    CUDA.functional() || throw(ArgumentError("device: found cuda, but CUDA.jl finds no GPU that it can use"))
    return Device(CuArray)
end

LVDJuice.is_full(::CUDA.OutOfGPUMemoryError) = true

end
