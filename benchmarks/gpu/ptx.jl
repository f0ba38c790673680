# Every kernel of the device engine as a GPU's own code, without a GPU: compiled to PTX by GPUCompiler.jl, as CUDA.jl does it, and assembled by
# NVIDIA's ptxas, which says how many registers it takes and what it spills.
#
#     julia --project=PROJECT benchmarks/gpu/ptx.jl [-o ptx.json] [--ptxas PTXAS] [--keep FOLDER]
#
# PROJECT has LVDJuice (julia/), KernelAbstractions 0.9, GPUCompiler 1 and LLVM 9; Julia is 1.10 or newer. ptxas is that of a CUDA toolkit. Neither
# CUDA.jl nor a GPU is needed: what CUDA.jl adds to a kernel is written out below, shorter: arrays in global memory, the thread's index, and what
# is done when something is thrown. With `--keep` the PTX stays in a folder.
#
# What is launched, and with which types, is taken from the engine at work. It is a fault if a kernel is not among them, and if one cannot be
# compiled, or has a call left in it, of whatever kind.

using GPUCompiler, KernelAbstractions, LLVM, LLVM.Interop, LVDJuice, Random
import KernelAbstractions as KA

include(joinpath(@__DIR__, "..", "..", "julia", "test", "remote.jl"))  # `Remote`, `LAUNCHES`, `kernels`

const EXTENSION = Base.get_extension(LVDJuice, :LVDJuiceKernelAbstractionsExt)  # whose kernel `each!` GPUs run
const CAPABILITIES = (v"8.0", v"9.0")
const PTX_VERSION = v"7.8"  # the first that knows sm_90

# ------------------------------------------------------------------------------------------------------------- the launches

"""
What launches all kernels: likelihoods, posteriors and EM of circuits that are dense, pruned, and of pairs of units; hidden values, soft evidence;
a batch of more samples than single precision adds up; a model with offsets that has windows and ties; mutual information of few categories and of many.
"""
function work()
    rng, device = MersenneTwister(1), Device(a -> Remote(copy(a)))
    X, head_of = rand(rng, UInt8(0):UInt8(2), 6, 200), Int32.(rand(rng, 1:2, 200))
    tree() = hclt([0, 1, 1, 2, 2, 3]; latents=8, categories=3, heads=2, seed=1)
    pairs = einet(num_vars=6, depth=2, replicas=2, num_sums=4, num_cats=3, heads=2, perturbation=0.9, seed=1)
    for c in (tree(), prune(tree(), X, head_of; keep=0.4), pairs)
        log_likelihood(engine(c, device), Masked(X, rand(rng, Bool, size(X))))
        finish!(EMJob(c, X, head_of; epochs=1, backend=device))
        scores = log.(rand(rng, Float32, 3, 6, 200))
        finish!(EMJob(c, SoftEvidence(copy(scores)), head_of; epochs=1, backend=device))
        LVDJuice.accumulate_posterior!(zeros(Float32, 3, 6, 200), engine(c, device; soft=true), SoftEvidence(scores), head_of)
    end
    finish!(EMJob(tree(), repeat(X, 1, 50), repeat(head_of, 50); epochs=1, batch_size=10_000, backend=device))
    shape = engine(hclt([0, 1]; latents=3, categories=4, heads=2), device)
    LVDJuice.limit_inputs!(shape, [true true; true false; true false; true true])
    LVDJuice.settle!(shape)
    prior, ties = LVDJuice.tied_tree([0, 1], [1, 1], [0.4, 0.6], reshape([0.3, 0.7, 0.8, 0.2], 2, 2, 1))
    emissions = Emissions([[shape]], [2], fill(0.5f0, 2, 2), [fill(0.5f0, 2, 2)])
    finish!(OffsetEMJob(prior, emissions, rand(rng, UInt8(0):UInt8(3), 2, 2, 50); ties=Ties(ties), epochs=1, backend=device))
    for categories in (3, 256)
        finish!(MutualInformationJob(X; categories=categories, mask=rand(rng, Bool, size(X)), backend=device))
    end
end

# --------------------------------------------------------------------------------------------------- arrays and indices of a GPU

"An array in global memory, laid out as CUDA.jl's `CuDeviceArray`."
struct GlobalArray{T,N} <: DenseArray{T,N}
    pointer::Core.LLVMPtr{T,1}
    most::Int
    sizes::NTuple{N,Int}
    count::Int
end

Base.size(a::GlobalArray) = a.sizes
Base.length(a::GlobalArray) = a.count
Base.IndexStyle(::Type{<:GlobalArray}) = IndexLinear()
Base.to_index(::GlobalArray, i::Integer) = i
alignment(::GlobalArray{T}) where {T} = Val(Base.datatype_alignment(T))
Base.@propagate_inbounds function Base.getindex(a::GlobalArray, i::Integer)
    @boundscheck checkbounds(a, i)
    return unsafe_load(a.pointer, i, alignment(a))
end
Base.@propagate_inbounds function Base.setindex!(a::GlobalArray{T}, x, i::Integer) where {T}
    @boundscheck checkbounds(a, i)
    unsafe_store!(a.pointer, convert(T, x)::T, i, alignment(a))
    return a
end
Base.@propagate_inbounds Base.getindex(a::GlobalArray, i::Integer...) = a[Base._to_linear_index(a, to_indices(a, i)...)]
Base.@propagate_inbounds Base.setindex!(a::GlobalArray, x, i::Integer...) = a[Base._to_linear_index(a, to_indices(a, i)...)] = x

"What CUDA.jl makes of an argument's type; a view of neighbouring numbers is an array of its own there."
on_gpu(::Type{Array{T,N}}) where {T,N} = GlobalArray{T,N}
on_gpu(::Type{<:Base.FastContiguousSubArray{T,N,<:Array}}) where {T,N} = GlobalArray{T,N}
on_gpu(::Type{SubArray{T,N,P,I,L}}) where {T,N,P,I,L} = SubArray{T,N,on_gpu(P),I,L}
on_gpu(::Type{T}) where {T<:Tuple} = Tuple{map(on_gpu, fieldtypes(T))...}
on_gpu(::Type{T}) where {T} = isbitstype(T) ? T : error("no GPU takes an argument of type $T")

Base.Experimental.@MethodTable(OVERLAY)
macro overlay(definition)
    esc(:(Base.Experimental.@overlay OVERLAY $definition))
end

thread() = ccall("llvm.nvvm.read.ptx.sreg.tid.x", llvmcall, Int32, ()) + Int32(1)
block() = ccall("llvm.nvvm.read.ptx.sreg.ctaid.x", llvmcall, Int32, ()) + Int32(1)

@overlay @inline KA.__index_Global_Linear(context) =
    @inbounds LinearIndices(KA.__ndrange(context))[KA.expand(KA.__iterspace(context), block(), thread())]
@overlay @inline KA.__validindex(context) =
    !KA.__dynamic_checkbounds(context) || @inbounds(KA.expand(KA.__iterspace(context), block(), thread())) in KA.__ndrange(context)

# One instruction each, which keeps NaN as Julia's own do.
@overlay @inline Base.min(a::Float32, b::Float32) = ccall("llvm.minimum.f32", llvmcall, Float32, (Float32, Float32), a, b)
@overlay @inline Base.max(a::Float32, b::Float32) = ccall("llvm.maximum.f32", llvmcall, Float32, (Float32, Float32), a, b)

"What a kernel calls beside itself, where it throws or allocates; one that does is at fault."
module Runtime
signal_exception() = ccall("llvm.trap", llvmcall, Cvoid, ())
malloc(bytes) = ccall("extern malloc", llvmcall, Ptr{Nothing}, (Csize_t,), bytes)
report_oom(bytes) = nothing
report_exception(name) = nothing
report_exception_name(name) = nothing
report_exception_frame(index, f, file, line) = nothing
end

struct Parameters <: AbstractCompilerParams end
const Job = CompilerJob{PTXCompilerTarget,Parameters}
GPUCompiler.runtime_module(::Job) = Runtime
GPUCompiler.method_table(::Job) = OVERLAY

# --------------------------------------------------------------------------------------------------------- compile and assemble

struct GPU <: KA.GPU end

"The PTX of a kernel as KernelAbstractions.jl launches it, over any number of indices in blocks of any size. Throws where something in it is not known."
function ptx_of(f, types, capability)
    each = EXTENSION.each!(GPU())
    space, check = KA.partition(each, (1000,), (256,))
    context = KA.CompilerMetadata{KA.ndrange(each),typeof(check)}((1000,), space)
    source = GPUCompiler.methodinstance(typeof(each.f), Tuple{typeof(context),typeof(f),types...})
    config = CompilerConfig(PTXCompilerTarget(cap=capability, ptx=PTX_VERSION), Parameters(); kernel=true, name=chop(string(nameof(f))))
    return JuliaContext() do _
        first(GPUCompiler.compile(:asm, CompilerJob(source, config)))
    end
end

"What ptxas says of a kernel's PTX: registers, and bytes of stack, spills and shared memory; and how often it may end by a trap."
function assemble(ptx, capability, ptxas)
    said = IOBuffer()
    mktempdir() do folder
        path = joinpath(folder, "kernel.ptx")
        write(path, ptx)
        command = ignorestatus(`$ptxas --verbose --gpu-name $(architecture(capability)) --output-file $path.cubin $path`)
        success(run(pipeline(command; stdout=said, stderr=said))) || error("ptxas: " * String(take!(said)))
    end
    text = String(take!(said))
    number(pattern, none=nothing) = (found = match(pattern, text); found === nothing ? none : parse(Int, found[1]))
    return (registers=number(r"Used (\d+) registers"), stack=number(r"(\d+) bytes stack frame"), spilled=number(r"(\d+) bytes spill stores"),
            reloaded=number(r"(\d+) bytes spill loads"), shared=number(r"(\d+) bytes smem", 0), traps=count(r"\btrap;", ptx))
end

architecture(capability) = "sm_$(capability.major)$(capability.minor)"

"The functions that PTX calls: what is not inlined, and what would be looked up on a GPU as it runs."
calls(ptx) = unique(m[1] for m in eachmatch(r"\bcall(?:\.uni)?\s+(?:\([^)]*\),\s*)?([\w$%.]+)", ptx))

"All kernels, each with every list of types that it was launched with, as a GPU has them."
function launched()
    work()
    unseen = setdiff(kernels(), first.(collect(LAUNCHES)))
    isempty(unseen) || error("no circuit launches $(join(unseen, ", "))")
    return sort!(collect(Set((f, map(on_gpu, types)) for (f, types) in LAUNCHES)); by=string)
end

"One kernel on every GPU; its PTX goes to files whose names begin with `keep`, unless that is nothing."
function measure(f, types, ptxas, keep)
    found = map(CAPABILITIES) do capability
        ptx = ptx_of(f, types, capability)
        keep === nothing || write("$keep.$(architecture(capability)).ptx", ptx)
        isempty(calls(ptx)) || error("it calls $(join(calls(ptx), ", "))")
        return Symbol(architecture(capability)) => assemble(ptx, capability, ptxas)
    end
    return (; kernel=string(nameof(f)), arguments=join(map(brief, types), ", "), found...)
end

"All kernels; throws at the end, once each was tried, if one is not to be had."
function measure_all(ptxas, keep)
    found, at_fault = NamedTuple[], String[]
    for (number, (f, types)) in enumerate(launched())
        try
            push!(found, measure(f, types, ptxas, keep === nothing ? nothing : joinpath(keep, "$number-$(nameof(f))")))
            println(row(found[end]))
        catch fault
            push!(at_fault, string(nameof(f)))
            println(at_fault[end], ": ", sprint(showerror, fault))
        end
    end
    isempty(at_fault) || error("kernels that not all GPUs can run: $(join(at_fault, ", "))")
    return found
end

function row(own)
    on_each = ("$gpu: $(own[gpu].registers) registers, $(own[gpu].spilled + own[gpu].reloaded) bytes spilled" for gpu in Symbol.(architecture.(CAPABILITIES)))
    return rpad(own.kernel, 20) * join(on_each, "; ")
end

brief(::Type{GlobalArray{T,N}}) where {T,N} = "$T[$N]"
brief(::Type{T}) where {T} = string(T)

# ------------------------------------------------------------------------------------------------------------------- results

json(x::Union{Real,Nothing}) = x === nothing ? "null" : string(x)
json(x) = "\"$x\""
json(x::NamedTuple) = "{" * join(("\"$key\": " * json(value) for (key, value) in pairs(x)), ", ") * "}"
json(x::Vector) = "[\n" * join(("    " * json(own) for own in x), ",\n") * "\n  ]"

function main(arguments)
    option(name, default) = (i = findfirst(==(name), arguments); i === nothing ? default : arguments[i + 1])
    ptxas, keep, seconds = option("--ptxas", "ptxas"), option("--keep", nothing), time()
    keep === nothing || mkpath(keep)
    measured = measure_all(ptxas, keep)
    versions = (julia=VERSION, llvm=Base.libllvm_version, GPUCompiler=pkgversion(GPUCompiler), LLVM_jl=pkgversion(LLVM),
                KernelAbstractions=pkgversion(KA), ptx=PTX_VERSION, ptxas=match(r"V[\d.]+", read(`$ptxas --version`, String)).match)
    result = (versions=versions, seconds=round(Int, time() - seconds), kernels=measured)
    path = option("-o", nothing)
    path === nothing || write(path, json(result) * "\n")
end

main(ARGS)
