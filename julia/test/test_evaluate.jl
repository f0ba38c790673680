@testset "likelihoods of random circuits, by enumeration" begin
    rng = MersenneTwister(3)
    for trial in 1:60
        V, C, heads = rand(rng, 1:5), rand(rng, 2:3), rand(rng, 1:3)
        c = random_circuit(rng, V, C, heads)
        X = assignments(V, C)
        ll = log_likelihood(c, X)
        reference = reduce(hcat, [log.(reference_values(c, X[:, n])[c.heads]) for n in axes(X, 2)])
        @test close_to(exp.(ll), exp.(reference))
        @test close_to(ll[isfinite.(ll)], reference[isfinite.(ll)])
        @test all(isapprox.(sum(exp.(ll), dims=2), 1; atol=1e-5))
        @test log_likelihood(c, UInt8.(X); heads=[heads]) == ll[heads:heads, :]
    end
end

@testset "sums of any width" begin
    for latents in (1, 5, 6, 7, 11, 96, 101)
        c = hclt([0, 1, 1]; latents=latents, categories=7, heads=2)
        X = rand(MersenneTwister(4), 0:6, 3, 200)
        reference = reduce(hcat, [LVDJuice.log_values(c, X, n)[c.heads] for n in axes(X, 2)])
        @test close_to(log_likelihood(c, X), reference)
    end
end

@testset "image scale: thousands of nats against Float64 in the log domain" begin
    rng = MersenneTwister(5)
    V = 784
    parent = [i == 1 ? 0 : rand(rng, max(1, i - 20):i - 1) for i in 1:V]
    c = hclt(parent; latents=16, categories=256, seed=1)
    c.leaf .= c.leaf .^ 8  # peaked inputs, as learned ones are
    for u in 1:length(c.kind)
        LVDJuice.isinput(c.kind[u]) || continue
        r = range(c.param_start[u], step=c.param_stride[u], length=256)
        c.leaf[r] ./= sum(c.leaf[r])
    end
    X = rand(rng, UInt8, V, 70)
    reference = [LVDJuice.log_values(c, X, n)[c.heads[1]] for n in axes(X, 2)]
    @test maximum(reference) < -3000
    @test close_to(vec(log_likelihood(c, X)), reference)
end

@testset "an underflow that matters later gets the exact answer" begin
    # Two states; the first is 1e-60 below the second on variables 1 and 2, and the second is impossible on variable 3.
    b = LVDJuice.Builder(3)
    tiny = Float32[1e-30 1; 1 0]
    inputs = [LVDJuice.add_inputs!(b, v, v < 3 ? tiny : Float32[1 0; 0 1]) for v in 1:3]
    pairs = [LVDJuice.add_product!(b, [inputs[1][k], inputs[2][k]]) for k in 1:2]
    copies = [LVDJuice.add_sum!(b, [p], [1.0]) for p in pairs]
    triples = [LVDJuice.add_product!(b, [copies[k], inputs[3][k]]) for k in 1:2]
    c = Circuit(b, [LVDJuice.add_sum!(b, triples, [0.5, 0.5])])
    @test log_likelihood(c, reshape([0, 0, 0], 3, 1))[1] ≈ log(0.5) + 2 * log(Float64(1f-30))
    @test log_likelihood(c, reshape([0, 0, 1], 3, 1))[1] ≈ log(0.5)
    @test log_likelihood(c, reshape([1, 0, 1], 3, 1))[1] == -Inf  # a true zero stays one
end

@testset "what an edge of weight 0 leads to counts for nothing, however likely" begin
    V = 400  # under the first component all ones are certain, under the second they have -921 nats
    c = mixture([fully_factorized(num_vars=V, num_cats=2) for _ in 1:2], [0, 1])
    inputs = findall(==(LVDJuice.CATEGORICAL), c.kind)
    for (k, p) in enumerate((1f0, 0.1f0)), u in inputs[(k - 1) * V + 1:k * V]
        LVDJuice.probabilities(c, u) .= (1 - p, p)
    end
    X = ones(Int, V, 1)
    values = LVDJuice.log_values(c, X, 1)
    @test values[c.heads[1]] ≈ V * log(0.1) rtol=1e-6
    @test log_likelihood(c, X)[1] ≈ V * log(0.1) rtol=1e-6
    @test LVDJuice.exact_unit_flows(c, values, 1)[inputs] ≈ [zeros(V); ones(V)]
end

@testset "a star of hundreds of groups neither overflows nor underflows" begin
    c = hclt([0; fill(1, 499)]; latents=4, categories=4, seed=2)
    X = rand(MersenneTwister(6), 0:3, 500, 65)
    reference = [LVDJuice.log_values(c, X, n)[c.heads[1]] for n in axes(X, 2)]
    @test close_to(vec(log_likelihood(c, X)), reference)
end

@testset "bad data is named" begin
    c = hclt([0, 1]; latents=2, categories=3)
    @test occursin("X: row 1, variable 0: value 3 is outside 0..2", message_of(() -> log_likelihood(c, [0 3; 1 1])))
    @test occursin("value -1 is outside", message_of(() -> log_likelihood(c, [0 -1; 1 1])))
    @test occursin("X has 3 variables, the circuit 2", message_of(() -> log_likelihood(c, zeros(Int, 3, 1))))
end

@testset "soft evidence" begin
    rng = MersenneTwister(7)
    V, K, N = 4, 3, 70
    c = hclt([0, 1, 1, 2]; latents=5, categories=K, seed=3)
    scores = randn(rng, Float32, K, V, N) .* 5 .- 1000
    # p(x) = sum over z of p(z) prod_i p(x_i | z_i), by enumeration
    Z = assignments(V, K)
    prior = vec(log_likelihood(c, Z))
    function joint(n)
        terms = [prior[m] + sum(Float64(scores[Z[i, m] + 1, i, n]) for i in 1:V) for m in axes(Z, 2)]
        top = maximum(terms)
        return top + log(sum(exp.(terms .- top)))
    end
    expected = [joint(n) for n in 1:N]
    # Certain evidence is the same as observing.
    certain = [k - 1 == Z[i, n] ? 0f0 : -Inf32 for k in 1:K, i in 1:V, n in axes(Z, 2)]
    @test close_to(vec(log_likelihood(c, SoftEvidence(certain))), prior)
    @test close_to(vec(log_likelihood(c, SoftEvidence(scores))), expected)
end
