# Underflow: whatever the tiles lose must be noticed (losses.jl).

using LVDJuice: SplitMix, below!

# Close to 1, a Float32 has an absolute error: the logarithm's relative one is then larger.
same_nats(a, b) = all(abs.(a .- b) .<= 1e-5 .* abs.(b) .+ 1e-6)

"Raises the parameters of sums and categorical inputs to powers up to `sharpest`, so that some lie far below Float32's range together."
function sharpen!(rng, c, sharpest)
    function sharpen_range!(theta, range)
        theta[range] .= theta[range] .^ (1 .+ (sharpest - 1) .* rand(rng, Float32, length(range)))
        theta[range] ./= sum(theta[range])
    end
    for u in eachindex(c.kind)
        c.kind[u] == LVDJuice.SUM && sharpen_range!(c.weight, c.child_start[u]:c.child_start[u + 1] - 1)
        c.kind[u] == LVDJuice.CATEGORICAL &&
            sharpen_range!(c.leaf, range(c.param_start[u], step=c.param_stride[u], length=c.categories[u]))
    end
    return c
end

"Flows of the data set by the exact evaluation, in the layout of the parameters."
function exact_statistics(c, X, head_of)
    stat = LVDJuice.Statistics(c)
    total = sum(add_exact_flows!(stat, c, X, n, head_of[n], 1) for n in 1:LVDJuice.num_samples(X))
    return c.weight .* stat.weight, stat.leaf, total
end

"The samples that the tiles leave to the exact evaluation."
function left_over(c, X)
    plan = Plan(c)
    ws = LVDJuice.Workspace(plan; flows=false)
    uncertain = 0
    GC.@preserve ws plan X for first in 1:LVDJuice.TILE:LVDJuice.num_samples(X)
        count = LVDJuice.load_samples!(ws, 1:LVDJuice.num_samples(X), first, LVDJuice.num_samples(X))
        LVDJuice.forward!(ws, plan, X)
        uncertain += Base.count(s -> !isfinite(LVDJuice.head_log_value(ws, plan, X, 1, s)), 1:count)
    end
    return uncertain
end

@testset "parameters far below each other: likelihoods and flows of random circuits" begin
    rng = MersenneTwister(31)
    for trial in 1:120
        V, C, heads = rand(rng, 2:6), rand(rng, 2:3), rand(rng, 1:2)
        c = sharpen!(rng, random_circuit(rng, V, C, heads), rand(rng, (5, 20, 30)))
        X = assignments(V, C)
        exact = reduce(hcat, [LVDJuice.log_values(c, X, n)[c.heads] for n in axes(X, 2)])
        found = log_likelihood(c, X)
        @test isfinite.(found) == isfinite.(exact)
        @test same_nats(found[isfinite.(exact)], exact[isfinite.(exact)])
        head_of = rand(rng, 1:heads, size(X, 2))
        possible = [isfinite(exact[head_of[n], n]) for n in axes(X, 2)]
        any(possible) || continue
        X, head_of = X[:, possible], head_of[possible]
        _, edges = flows(c, X, head_of)
        expected, _, _ = exact_statistics(c, X, head_of)
        sums = [e for u in eachindex(c.kind) if c.kind[u] == LVDJuice.SUM for e in LVDJuice.edges(c, u)]
        @test maximum(abs.(edges[sums] .- expected[sums])) < 1e-4 * size(X, 2)
    end
end

@testset "a state that falls behind by hundreds of nats and is the only one left" begin
    # Of 40 variables, the first 20 favour one state by 10 nats each and the others the other one by 11.
    V = 40
    b = LVDJuice.Builder(V)
    table(favoured, nats) = (p = exp(-Float32(nats)); favoured == 1 ? [0 1; 1-p p] : [1-p p; 0 1])
    inputs = [LVDJuice.add_inputs!(b, v, v <= 20 ? table(1, 10) : table(2, 11)) for v in 1:V]
    sums = [[LVDJuice.add_sum!(b, [inputs[v][k]], [1]) for k in 1:2] for v in 1:V]
    states = [LVDJuice.add_product!(b, [sums[v][k] for v in 1:V]) for k in 1:2]
    c = Circuit(b, [LVDJuice.add_sum!(b, states, [0.5, 0.5])])
    x = ones(Int, V, 1)
    @test left_over(c, x) == 1
    @test log_likelihood(c, x)[1] ≈ log(0.5) - 200 + log1p(exp(-20))
    units, _ = flows(c, x, [1])
    @test units[states] ≈ [exp(-20), 1] atol=1e-6
end

@testset "long products and deep trees whose states take turns" begin
    rng = MersenneTwister(34)
    for trial in 1:20
        V, K = rand(rng, 30:60), rand(rng, 2:4)
        parent = trial % 2 == 0 ? [0; fill(1, V - 1)] : [0; 1:V - 1]
        c = sharpen!(rng, hclt(parent; latents=K, categories=3, seed=trial), 25)
        X = rand(rng, 0:2, V, 100)
        exact = [LVDJuice.log_values(c, X, n)[c.heads[1]] for n in axes(X, 2)]
        @test same_nats(vec(log_likelihood(c, X)), exact)
        possible = findall(isfinite, exact)
        _, edges = flows(c, X[:, possible], ones(Int, length(possible)))
        expected, _, _ = exact_statistics(c, X[:, possible], ones(Int, length(possible)))
        sums = [e for u in eachindex(c.kind) if c.kind[u] == LVDJuice.SUM for e in LVDJuice.edges(c, u)]
        @test maximum(abs.(edges[sums] .- expected[sums])) < 1e-3
    end
end

@testset "a loss in one component of a mixture does not hide behind the other" begin
    # The first component underflows to zero in the middle, at a scale far above the second one's.
    V = 60
    b = LVDJuice.Builder(V)
    tables = [v <= 2 ? Float32[1 1f-30; 0.5 0.5] : Float32[0.5 0.5; 1 1f-35] for v in 1:V]
    inputs = [LVDJuice.add_inputs!(b, v, tables[v]) for v in 1:V]
    tiny = [LVDJuice.add_product!(b, [inputs[1][1], inputs[2][1]]), LVDJuice.add_product!(b, [inputs[1][2], inputs[2][2]])]
    first = LVDJuice.add_product!(b, vcat(LVDJuice.add_sum!(b, tiny[1:1], [1]), [inputs[v][1] for v in 3:V]))
    second = LVDJuice.add_product!(b, vcat(LVDJuice.add_sum!(b, tiny[2:2], [1]), [inputs[v][2] for v in 3:V]))
    c = Circuit(b, [LVDJuice.add_sum!(b, [first, second], [0.5, 0.5])])
    x = ones(Int, V, 1)
    @test same_nats(log_likelihood(c, x), [LVDJuice.log_values(c, x, 1)[c.heads[1]]])
end

@testset "products of products keep their scale" begin
    rng = MersenneTwister(32)
    V = 7^3
    b = LVDJuice.Builder(V)
    level = [LVDJuice.add_sum!(b, LVDJuice.add_inputs!(b, v, Float32[0.001 0.999; 0.002 0.998]), [0.5, 0.5]) for v in 1:V]
    while length(level) > 1
        level = [LVDJuice.add_product!(b, level[i:i + 6]) for i in 1:7:length(level)]
    end
    c = Circuit(b, level)
    X = Int.(rand(rng, V, 70) .< 0.5)
    @test same_nats(vec(log_likelihood(c, X)), [LVDJuice.log_values(c, X, n)[c.heads[1]] for n in axes(X, 2)])
end

@testset "circuits as they are learned leave nothing to the exact evaluation" begin
    rng = MersenneTwister(33)
    c = hclt([0; [rand(rng, max(1, i - 20):i - 1) for i in 2:300]]; latents=16, categories=256, seed=1)
    X = rand(rng, UInt8, 300, 256)
    LVDJuice.finish!(EMJob(c, X, ones(Int32, 256); epochs=5, step_size=(0.9, 0.5), pseudocount=1e-4))
    @test left_over(c, X) == 0
    @test left_over(c, rand(rng, UInt8, 300, 128)) == 0
    # True zeros are no losses.
    pinned = fully_factorized(num_vars=3, num_cats=2)
    pinned.leaf .= [1, 0, 1, 0, 1, 0]
    @test left_over(pinned, zeros(Int, 3, 64)) == 0
end

@testset "pruned and grown circuits leave little to the exact evaluation, on data that they did not expect" begin
    rng, own = MersenneTwister(7), SplitMix(7, 1)  # how many are left differs from tree to tree: one stream, whatever Julia's is
    V = 200
    for parent in ([0; [i - below!(own, min(6, i - 1)) for i in 2:V]], [0; 1:V - 1])
        c = sharpen!(rng, hclt(parent; latents=8, categories=8, seed=1), 25)
        X, heads = [below!(own, 8) - 1 for _ in 1:V, _ in 1:300], ones(Int, 300)
        both = grow(prune(c, X, heads; keep=0.3), X, heads; select=[1], threshold=0, noise=0.3, seed=2)
        c = with_heads(both, [1])
        @test left_over(c, X) < 60  # of 300: with one bound for each group it was nearly all of them
        exact = [LVDJuice.log_values(c, X, n)[c.heads[1]] for n in axes(X, 2)]
        @test same_nats(vec(log_likelihood(c, X)), exact)
        possible = findall(isfinite, exact)
        _, edges = flows(c, X[:, possible], heads[possible])
        expected, _, _ = exact_statistics(c, X[:, possible], heads[possible])
        sums = [e for u in eachindex(c.kind) if c.kind[u] == LVDJuice.SUM for e in LVDJuice.edges(c, u)]
        @test maximum(abs.(edges[sums] .- expected[sums])) < 1e-3
    end
end

@testset "heads hundreds of nats apart, masks and soft evidence" begin
    rng = MersenneTwister(35)
    V = 40
    c = side_by_side([sharpen!(rng, hclt([0; 1:V - 1]; latents=3, categories=3, seed=seed), 25) for seed in 1:3])
    X = rand(rng, 0:2, V, 150)
    expected(X) = reduce(hcat, [LVDJuice.log_values(c, X, n)[c.heads] for n in 1:LVDJuice.num_samples(X)])
    @test same_nats(log_likelihood(c, X), expected(X))
    masked = Masked(X, Matrix{Bool}(rand(rng, V, 150) .< 0.3))
    @test same_nats(log_likelihood(c, masked), expected(masked))
    scores = 30 .* randn(rng, Float32, 3, V, 100)
    soft = SoftEvidence(copy(scores))
    @test same_nats(log_likelihood(c, soft), expected(soft) .+ soft.offset')
    # Their flows: what each head's own circuit says.
    head_of = rand(rng, 1:3, 150)
    sums = [e for u in eachindex(c.kind) if c.kind[u] == LVDJuice.SUM for e in LVDJuice.edges(c, u)]
    for data in (X, masked)
        job = LVDJuice.FlowJob(Plan(c), data, head_of)
        advance!(job)
        exact, leaf, _ = exact_statistics(c, data, head_of)
        @test maximum(abs.(job.counts.weight[sums] .- exact[sums])) < 1e-3
        @test maximum(abs.(job.counts.leaf .- leaf)) < 1e-3
    end
end

@testset "what is missing counts for no input, also where the tiles leave a sample to the exact evaluation" begin
    rng = MersenneTwister(37)
    c = sharpen!(rng, hclt([0; 1:39]; latents=3, categories=21, seed=1), 25)
    data = Masked(rand(rng, 0:20, 40, 150), Matrix{Bool}(rand(rng, 40, 150) .< 0.1))
    @test left_over(c, data) > 0
    job = LVDJuice.FlowJob(Plan(c), data, ones(Int, 150))
    advance!(job)
    weight, leaf, _ = exact_statistics(c, data, ones(Int, 150))
    @test maximum(abs.(job.counts.weight .- weight)) < 1e-3
    @test maximum(abs.(job.counts.leaf .- leaf)) < 1e-3
    @test sum(job.counts.leaf) ≈ count(.!data.mask) rtol = 1e-5
end

@testset "EM in small batches on what the tiles leave to the exact evaluation" begin
    rng = MersenneTwister(36)
    V, N = 40, 20
    make() = side_by_side([sharpen!(MersenneTwister(seed), hclt([0; 1:V - 1]; latents=3, categories=21, seed=seed), 25) for seed in 1:3])
    c, X, head_of = make(), rand(rng, 0:20, V, N), rand(rng, 1:3, N)
    @test left_over(c, X) > 0
    weight, leaf, _ = exact_statistics(c, X, head_of)
    job = EMJob(c, X, head_of; epochs=1, batch_size=N, step_size=(0.5, 0.5), pseudocount=0.1)
    @test job.engine.inputs !== nothing
    plain = make()
    LVDJuice.apply!(LVDJuice.engine(plain), LVDJuice.ExpectedCounts(weight, leaf), 0.5, 0.1)
    for epoch in 1:3
        one_batch!(job)
        epoch == 1 && (LVDJuice.settle!(job.engine); @test close_to(c.leaf, plain.leaf; rtol=1e-4))
    end
    # Three steps without a look at the parameters, and the same with one after each.
    often = make()
    looked = EMJob(often, X, head_of; epochs=1, batch_size=N, step_size=(0.5, 0.5), pseudocount=0.1)
    for _ in 1:3
        one_batch!(looked)
        LVDJuice.settle!(looked.engine)
    end
    LVDJuice.settle!(job.engine)
    @test close_to(c.leaf, often.leaf; rtol=1e-4) && close_to(c.weight, often.weight; rtol=1e-3)
end

"log p(x) of `x` successes in `N` trials, factor by factor."
log_binomial_slowly(N, x, p) =
    sum(BigFloat[log(big(N - i)) - log(big(i + 1)) for i in 0:x - 1]) + (x > 0 ? x * log(big(p)) : 0) + (x < N ? (N - x) * log1p(-big(p)) : 0)

@testset "binomials whose tables underflow" begin
    rng = MersenneTwister(5)
    for N in (1, 3, 255, 700), p in (1f-6, 0.02f0, 0.5f0, 0.999f0), x in unique((0, 1, N ÷ 3, N))
        expected = Float64(log_binomial_slowly(N, x, p))
        @test LVDJuice.log_binomial(N, x, p) ≈ expected rtol=1e-12 atol=1e-13
    end
    N, success = 255, Float32[0.5 0.03; 0.999 0.4]
    b = LVDJuice.Builder(2)
    units = [LVDJuice.add_binomials!(b, i, N, success[:, i]) for i in 1:2]
    products = [LVDJuice.add_product!(b, [units[1][k], units[2][k]]) for k in 1:2]
    c = LVDJuice.Circuit(b, [LVDJuice.add_sum!(b, products, [0.3f0, 0.7f0])])
    X = reduce(hcat, [rand(rng, UInt8, 2, 60), UInt8[0 255 0 255; 0 255 255 0]])
    terms(n, s) = [log(big(w)) + sum(log_binomial_slowly(N, Int(X[i, n]), s[k, i]) for i in 1:2) for (k, w) in enumerate((0.3f0, 0.7f0))]
    exact = [Float64(log(sum(exp.(terms(n, success))))) for n in axes(X, 2)]
    found = vec(log_likelihood(c, X))
    @test minimum(exact) < -1000
    @test same_nats(found, exact)
    least = argmin(exact)
    @test LVDJuice.log_values(c, X, least)[end] ≈ exact[least] rtol=1e-12
    hidden = fill(false, size(X))
    hidden[2, :] .= true
    alone = [Float64(log(sum(big(w) * exp(log_binomial_slowly(N, Int(X[1, n]), success[k, 1])) for (k, w) in enumerate((0.3f0, 0.7f0)))))
             for n in axes(X, 2)]
    @test same_nats(vec(log_likelihood(c, LVDJuice.Masked(X, hidden))), alone)
    # A whole EM step: every row has its share, also those that the tables know nothing of.
    shares = reduce(hcat, [Float64.(exp.(terms(n, success) .- log(sum(exp.(terms(n, success)))))) for n in axes(X, 2)])
    expected = Float32[sum(shares[k, :] .* X[i, :]) / (N * sum(shares[k, :])) for k in 1:2, i in 1:2]
    LVDJuice.advance!(LVDJuice.EMJob(c, X, ones(Int32, size(X, 2)); epochs=1, batch_size=size(X, 2), step_size=(1.0, 1.0), pseudocount=0.0))
    @test reduce(hcat, [c.success[u] for u in units]) ≈ expected rtol=1e-5
end
