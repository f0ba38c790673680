@testset "the benchmark's reference is the definition" begin
    rng = MersenneTwister(7)
    c = hclt([2, 0, 2, 3]; latents=3, categories=4, seed=1)
    X = rand(rng, 0:3, 4, 20)
    expected = [log(reference_values(c, X[:, n])[c.heads[1]]) for n in 1:20]
    @test LVDJuice.Bench.reference_log_likelihood(c, X) ≈ expected rtol=1e-12
    weight, leaf = LVDJuice.Bench.reference_step(c, X, 0.1)
    expected_weight, expected_leaf = reference_step(c, X, ones(Int, 20), 1.0, 0.1)
    @test weight ≈ expected_weight rtol=1e-12
    @test leaf ≈ expected_leaf rtol=1e-12
end

@testset "timings and memory of an EM job" begin
    c = hclt([0, 1, 2]; latents=4, categories=3)
    X = rand(MersenneTwister(8), Int32(0):Int32(2), 3, 100)
    for backend in (CPU(), Device()), seconds in LVDJuice.Bench.timings(EMJob(c, X, ones(Int32, 100); batch_size=100, backend=backend), X, 0.3)
        # Seconds: with other work beside, a step may take tens of ms.
        @test length(seconds) >= 2 && all(s -> 0 <= s < 10, seconds)
    end
    shared = zeros(10)
    @test LVDJuice.Bench.array_bytes((shared, [shared, zeros(5)], 3, "text")) - sizeof([shared, shared]) == 120
    bytes, allocated, parameters, tile = LVDJuice.Bench.memory(c, X)
    @test parameters == 4 * (length(c.weight) + length(c.leaf))
    @test bytes > 2 * parameters
    # Values and flows of the two products and the inputs below them and the head, and values of the sums between.
    @test tile == 4 * LVDJuice.TILE * (2 * (2 * 4 + 4 + 1) + 2 * 4)
end

@testset "an EM job takes no more than its parameters, and statistics and a tile a thread" begin
    for (V, latents, categories, batch) in ((24, 128, 8, 64), (60, 16, 128, 128), (60, 16, 128, 64), (48, 16, 256, 256))
        c = hclt([0; [1 + (7 * i^2 + 3) % (i - 1) for i in 2:V]]; latents=latents, categories=categories)  # how tight it is depends on the tree
        bytes, allocated, parameters, tile = LVDJuice.Bench.memory(c, rand(Int32(0):Int32(categories - 1), V, batch))
        @test bytes + allocated <= parameters + Threads.nthreads() * (parameters + tile)
    end
end
