# Arrays whose numbers cannot be looked at one by one, as those of a GPU, and what the device engine asks of them.

"An array elsewhere: only kernels, matrix products and whole copies reach its numbers."
struct Remote{T,N,A<:AbstractArray{T,N}} <: AbstractArray{T,N}
    data::A
end

Base.size(a::Remote) = size(a.data)
Base.getindex(a::Remote, i...) = error("a number was read one by one")
Base.setindex!(a::Remote, x, i...) = error("a number was written one by one")
Base.Array(a::Remote) = Array(a.data)
Base.view(a::Remote, i...) = Remote(view(a.data, i...))
Base.reshape(a::Remote, sizes::Int...) = Remote(reshape(a.data, sizes...))
Base.fill!(a::Remote, x) = (fill!(a.data, x); a)
Base.copyto!(a::Remote, b::Remote) = (copyto!(a.data, b.data); a)
near(a) = a
near(a::Remote) = a.data
near(a::Tuple) = map(near, a)

"Every kernel that was launched on such arrays, with the types of what it was given after its index, as Julia's own arrays."
const LAUNCHES = Set{Tuple{Function,Tuple}}()

"How many launches and batches of matrix products there were."
const WORK = Ref(0)

function LVDJuice.launch!(f, ::Remote, n::Int, args...)
    n > 0 && push!(LAUNCHES, (f, map(a -> typeof(near(a)), args)))
    WORK[] += n > 0
    return LVDJuice.launch!(f, zeros(0), n, map(near, args)...)
end

LVDJuice.matrix_product!(c::Remote, a::Remote, b::Remote, beta::Float32, turn_a::Bool=false, turn_b::Bool=false) =
    LVDJuice.matrix_product!(near(c), near(a), near(b), beta, turn_a, turn_b)

function LVDJuice.matrix_products!(::Remote, cs, as, bs, beta::Float32, turn_a::Bool=false, turn_b::Bool=false)
    WORK[] += 1
    foreach((c, a, b) -> LVDJuice.matrix_product!(c, a, b, beta, turn_a, turn_b), cs, as, bs)
end

"All kernels that there are: what of the device engine's files takes an index `i` first."
function kernels()
    found = Function[]
    for name in names(LVDJuice; all=true)
        f = isdefined(LVDJuice, name) ? getfield(LVDJuice, name) : nothing
        f isa Function && any(is_kernel, methods(f, LVDJuice)) && push!(found, f)
    end
    return found
end

is_kernel(m::Method) = endswith(string(m.name), "!") && basename(dirname(string(m.file))) == "device" && get(Base.method_argnames(m), 2, nothing) == :i
