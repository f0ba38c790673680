"Circuits on NVIDIA GPUs: the device engine on CUDA.jl's arrays. Its kernels are launched by KernelAbstractions.jl, which CUDA.jl loads."
module LVDJuiceCUDAExt

using CUDA: CUDA, CUBLAS, CuArray, CuMatrix
using LVDJuice: LVDJuice, Device

function LVDJuice.backend(::Val{:cuda})
    CUDA.functional() || throw(ArgumentError("device: found cuda, but CUDA.jl finds no GPU that it can use"))
    return Device(CuArray)
end

LVDJuice.zeros_at(::Type{CuArray}, T, sizes::Int...) = CUDA.zeros(T, sizes...)

"By one call of CUBLAS where all columns are without gaps: it takes the first matrix' stride for that of all, and no views of other kinds."
function LVDJuice.matrix_products!(::CuArray, cs::Vector{<:CuMatrix{Float32}}, as::Vector{<:CuMatrix{Float32}}, bs::Vector{<:CuMatrix{Float32}},
                                   beta::Float32, turn_a::Bool=false, turn_b::Bool=false)
    CUBLAS.gemm_batched!(turn_a ? 'T' : 'N', turn_b ? 'T' : 'N', 1f0, as, bs, beta, cs)
    return nothing
end

LVDJuice.is_full(::CUDA.OutOfGPUMemoryError) = true

end
