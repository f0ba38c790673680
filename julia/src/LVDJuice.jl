"""
LVDJuice: probabilistic circuits on a CPU, for latent variable distillation.

A [`Circuit`](@ref) is a directed acyclic graph of input, product and sum units with one or more heads. It is learned as
a hidden Chow-Liu tree ([`hclt`](@ref)) and by mini-batch EM ([`EMJob`](@ref)); [`prune`](@ref) and [`grow`](@ref) make
another one of it, where the data call for less or more; it answers [`log_likelihood`](@ref),
[`flows`](@ref), [`sample`](@ref), [`posterior_marginals`](@ref) and [`mpe`](@ref), also with variables [`Masked`](@ref).
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
include("builders.jl")
include("joint_circuit.jl")
include("jpc.jl")
include("plan.jl")
include("kernels.jl")
include("data.jl")
include("statistics.jl")
include("inputs.jl")
include("wide.jl")
include("evaluate.jl")
include("losses.jl")
include("logdomain.jl")
include("em.jl")
include("queries.jl")
include("mpe.jl")
include("flows.jl")
include("joint.jl")
include("support.jl")
include("prune.jl")
include("grow.jl")
include("interface.jl")
include("bench.jl")
include("precompile.jl")

export Circuit, Plan, Masked, SoftEvidence, ObservedStates, EMJob, JointEMJob, MutualInformationJob
export num_units, num_edges, num_heads, num_params
export read_jpc, write_jpc, rat_spn, fully_factorized, from_tree, mixture, side_by_side, joint_circuit
export hclt, chow_liu_tree, log_likelihood, advance!, finish!
export flows, prune, grow, with_heads, sample, posterior_marginals, mpe

end
