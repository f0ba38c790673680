"Kernels of the device engine on arrays of every backend that KernelAbstractions.jl knows."
module LVDJuiceKernelAbstractionsExt

using KernelAbstractions: @index, @kernel, get_backend
using LVDJuice: LVDJuice

@kernel function each!(f, args...)
    i = @index(Global, Linear)
    @inline f(i, args...)  # as a call, it would take its arguments from memory
end

"In the order of the array's own queue: what is launched later, or copied to the host, comes after it."
function LVDJuice.launch!(f::F, like::AbstractArray, n::Int, args::Vararg{Any,K}) where {F,K}
    n > 0 && each!(get_backend(like))(f, args...; ndrange=n)
    return nothing
end

end
