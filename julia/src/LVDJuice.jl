"""
LVDJuice: probabilistic circuits on a CPU, for latent variable distillation.

A [`Circuit`](@ref) is a directed acyclic graph of input, product and sum units with one or more heads. It is learned as
a hidden Chow-Liu tree ([`hclt`](@ref)) and by mini-batch EM ([`EMJob`](@ref)); [`prune`](@ref) and [`grow`](@ref) make
another one of it, where the data call for less or more; it answers [`log_likelihood`](@ref),
[`flows`](@ref), [`sample`](@ref), [`posterior_marginals`](@ref), [`posterior_answer`](@ref) and [`mpe`](@ref), also with variables [`Masked`](@ref).
A [`Schedule`](@ref) groups the units and fixes the order of work; an [`Engine`](@ref) does it, on a [`Backend`](@ref).

Standard library only; runs on Julia 1.5 and later. What it does together with other packages are extensions: [`load_extension`](@ref).
"""
module LVDJuice

using LinearAlgebra: mul!, transpose!
using LinearAlgebra.BLAS: gemm!

include("door/boundary.jl")
using .Boundary: pause, in_pieces
include("door/extensions.jl")
include("rng.jl")
include("memory.jl")
include("share.jl")

include("circuits/circuit.jl")
include("circuits/inputs.jl")
include("circuits/logistic.jl")
include("circuits/numbers.jl")
include("circuits/chowliu.jl")
include("circuits/starter.jl")
include("circuits/leaves.jl")
include("circuits/hclt.jl")
include("circuits/tied_tree.jl")
include("circuits/regions.jl")
include("circuits/builders.jl")
include("circuits/einet.jl")
include("circuits/joint_circuit.jl")
include("circuits/offset_circuit.jl")
include("circuits/jpc.jl")

include("plan/groups.jl")
include("plan/schedule.jl")

include("learning/data.jl")
include("learning/windows.jl")
include("learning/statistics.jl")
include("learning/terms.jl")
include("backends.jl")
include("learning/information.jl")

include("cpu/simd.jl")
include("cpu/kernels.jl")
include("cpu/dense.jl")
include("cpu/columns.jl")
include("cpu/inputs.jl")
include("cpu/statistics.jl")
include("cpu/wide.jl")
include("cpu/workspace.jl")
include("cpu/pairs.jl")
include("cpu/numbers.jl")
include("cpu/evaluate.jl")
include("cpu/losses.jl")
include("cpu/flows.jl")
include("cpu/engine.jl")
include("cpu/information.jl")

include("device/batches.jl")
include("device/levels.jl")
include("device/kernels.jl")
include("device/engine.jl")
include("device/evaluate.jl")
include("device/flows.jl")
include("device/information.jl")

include("exact.jl")

include("learning/em.jl")
include("queries/likelihood.jl")
include("queries/sample.jl")
include("queries/mpe.jl")
include("queries/flows.jl")
include("queries/marginals.jl")
include("queries/support.jl")
include("queries/posteriors.jl")
include("learning/joint.jl")
include("learning/emissions.jl")
include("learning/offsets.jl")
include("learning/field.jl")
include("learning/field_counts.jl")
include("learning/field_patches.jl")
include("learning/field_em.jl")
include("learning/shared.jl")
include("queries/field.jl")
include("circuits/prune.jl")
include("circuits/grow.jl")
include("queries/determinism.jl")
include("queries/distances.jl")

include("codec/lanes.jl")
include("codec/plan.jl")
include("codec/tile.jl")
include("codec/field.jl")
include("codec/coder.jl")
include("codec/patch.jl")
include("codec/coding.jl")
include("codec/rows.jl")
include("codec/windows.jl")

include("door/interface.jl")
include("bench.jl")
include("door/precompile.jl")
include("door/rehearsal.jl")

__init__() = (WIDE[] = has_wide_registers(); nothing)

export Circuit, Plan, Schedule, Masked, SoftEvidence, ObservedStates, EMJob, JointEMJob, MutualInformationJob
export num_units, num_edges, num_heads, num_params
export read_jpc, write_jpc, rat_spn, einet, fully_factorized, from_tree, mixture, side_by_side, joint_circuit, offset_circuit
export Emissions, OffsetEMJob, Ties, emission_scores!, emission_shares!
export Leaf, hclt, chow_liu_tree, log_likelihood, advance!, finish!
export Backend, CPU, Device, Engine, engine, ExpectedCounts, expect!, counts!, maximise!
export flows, prune, grow, with_heads, sample, posterior_marginals, mpe
export LatentEntropy, Moments, Gradient, UnitFlows, posterior_answer, kl_divergence, log_inner_product, is_deterministic

end
