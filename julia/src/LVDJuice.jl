"""
LVDJuice: probabilistic circuits on a CPU, for latent variable distillation.

A [`Circuit`](@ref) is a directed acyclic graph of input, product and sum units with one or more heads. It is learned as
a hidden Chow-Liu tree ([`hclt`](@ref)) and by mini-batch EM ([`EMJob`](@ref)); it answers [`log_likelihood`](@ref).
Evaluation goes through a [`Plan`](@ref), which groups the units and fixes the order of work.

Standard library only; runs on Julia 1.5 and later.
"""
module LVDJuice

using LinearAlgebra.BLAS: gemm!

include("boundary.jl")
include("rng.jl")
include("simd.jl")
include("circuit.jl")
include("chowliu.jl")
include("hclt.jl")
include("plan.jl")
include("kernels.jl")
include("evaluate.jl")
include("logdomain.jl")
include("em.jl")
include("interface.jl")
include("precompile.jl")

export Circuit, Plan, SoftEvidence, EMJob, MutualInformationJob
export hclt, chow_liu_tree, log_likelihood, advance!, finish!

end
