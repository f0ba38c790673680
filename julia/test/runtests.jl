# The tests of the Julia package: `julia --project=julia julia/test/runtests.jl`, from the top of the checkout.

using LVDJuice, LinearAlgebra, Random, Test

include("reference.jl")

BLAS.set_num_threads(1)

close_to(a, b; rtol=1e-5) = all(abs.(a .- b) .<= rtol .* max.(abs.(a), abs.(b)) .+ 1e-12)

@testset "LVDJuice" begin
    include("test_circuit.jl")
    include("test_inputs.jl")
    include("test_structure.jl")
    include("test_builders.jl")
    include("test_evaluate.jl")
    include("test_losses.jl")
    include("test_dense.jl")
    include("test_einet.jl")
    include("test_em.jl")
    include("test_jpc.jl")
    include("test_queries.jl")
    include("test_answers.jl")
    include("test_prune.jl")
    include("test_grow.jl")
    include("test_joint.jl")
    include("test_emissions.jl")
    include("test_offsets.jl")
    include("test_field.jl")
    include("test_shared.jl")
    include("test_backends.jl")
    include("test_device.jl")
    include("test_bench.jl")
    include("test_codec.jl")
    include("test_door.jl")
end
