@testset "tables of logistics" begin
    for (C, location, scale) in ((1, 0.0, 1.0), (2, 0.3, 0.5), (5, 2.2, 0.7), (256, 100.25, 3.0), (256, -20.0, 5.0), (256, 255.5, 0.25), (256, 128.0, 900.0))
        table = LVDJuice.fill_logistic!(zeros(Float32, C), Float32(location), Float32(scale))
        wanted = logistic_table(C, Float32(location), Float32(scale))
        @test all(isapprox.(table, max.(wanted, LVDJuice.LEAST_OF_LOGISTIC); rtol=1e-5))
        @test sum(Float64, table) ≈ 1 atol=1e-6
    end
end

@testset "the likeliest logistic" begin
    rng = MersenneTwister(3)
    for C in (2, 3, 5, 40, 256)
        shares = rand(rng, C) .^ 3
        shares ./= sum(shares)
        peaked = [exp(-abs(x - C / 3) / 2) for x in 1:C]
        ends = [x in (1, C) ? 1.0 : 0.01 for x in 1:C]
        value(m, s, h) = sum(h .* log.(logistic_table(C, m, s)))
        for h in (shares, peaked ./ sum(peaked), ends ./ sum(ends))
            found, searched = LVDJuice.fit_logistic(h, C / 2, C / 3), searched_logistic(h)
            @test value(found..., h) >= value(searched..., h) - 1e-8
            again = LVDJuice.fit_logistic(h, -3.0 * C, 0.1)  # from far away
            @test value(again..., h) ≈ value(found..., h) atol=1e-7
        end
    end
    # All samples in one category: as narrow as may be, and finite.
    for x in (1, 2, 8)
        h = [i == x ? 1.0 : 0.0 for i in 1:8]
        location, scale = LVDJuice.fit_logistic(h, 3.5, 2.0)
        @test isfinite(location) && scale >= LVDJuice.LEAST_LOGISTIC_SCALE && logistic_table(8, location, scale)[x] > 0.999
    end
end

@testset "logistics recover what they were drawn from" begin
    rng, C = MersenneTwister(4), 64
    tables = (logistic_table(C, 12.0, 3.0), logistic_table(C, 45.0, 2.0))
    draw(p) = searchsortedfirst(cumsum(p), rand(rng)) - 1
    X = [min(draw(tables[rand(rng) < 0.3 ? 1 : 2]), C - 1) for _ in 1:1, _ in 1:20_000]
    b = LVDJuice.Builder(1)
    units = LVDJuice.add_logistics!(b, 1, C, [20.0, 40.0], [8.0, 8.0])
    c = Circuit(b, [LVDJuice.add_sum!(b, units, [0.5, 0.5])])
    before = -Inf
    job = EMJob(c, X, ones(Int32, 20_000); epochs=30, batch_size=20_000, step_size=(1, 1), pseudocount=0.0)
    for _ in 1:30  # each full step makes the data likelier
        _, _, mean = advance!(job)
        @test mean >= before - 1e-6
        before = mean
    end
    @test c.weight[1] ≈ 0.3 atol=0.02
    @test [c.leaf[LVDJuice.logistic_places(c, u)[1]] for u in units] ≈ [12, 45] atol=0.2
    @test [c.leaf[LVDJuice.logistic_places(c, u)[2]] for u in units] ≈ [3, 2] atol=0.15
    @test num_params(c) == 6
end

@testset "structures with logistic leaves" begin
    rng = MersenneTwister(5)
    leaves = fill(LVDJuice.Leaf(LVDJuice.LOGISTIC, 6), 4)
    X = rand(rng, 0:5, 4, 500)
    states, heads = rand(rng, 0:2, 4, 500), ones(Int32, 500)
    for c in (hclt([0, 1, 1, 2]; latents=3, categories=6, leaves=leaves, seed=1),
              hclt([0, 1, 1, 2]; latents=3, categories=6, leaves=leaves, seed=1, observed=ObservedStates(X, states, heads)),
              rat_spn(num_vars=4, depth=2, replicas=2, num_sums=2, num_inputs=3, num_cats=6, leaves=leaves, seed=2))
        @test any(==(LVDJuice.LOGISTIC), c.kind) && !any(==(LVDJuice.CATEGORICAL), c.kind)
        @test sum(exp, log_likelihood(c, assignments(4, 6))) ≈ 1 rtol=1e-5
        job = EMJob(c, X, heads; epochs=3, batch_size=100)
        first_mean = advance!(job)[3]
        @test finish!(job) > first_mean
        LVDJuice.check(c)
    end
end

# Inputs over numbers, held to densities written out, and to integrals.

density(c, u, x) = c.kind[u] == LVDJuice.GAUSSIAN ? (m = entry(c, u, 0); s = entry(c, u, 1); exp(-(x - m)^2 / (2 * s^2)) / (s * sqrt(2 * pi))) :
                   c.kind[u] == LVDJuice.POISSON ? (r = big(entry(c, u, 0)); Float64(r^Int(x) * exp(-r) / factorial(big(Int(x))))) :
                   Float64(LVDJuice.probability(c, u, Int(x)))
entry(c, u, k) = Float64(c.leaf[c.param_start[u] + k * c.param_stride[u]])

"Values of all units for one sample; NaN marginalises."
function mixed_values(c, x)
    p = zeros(length(c.kind))
    for u in eachindex(p)
        kids = LVDJuice.edges(c, u)
        p[u] = LVDJuice.isinput(c.kind[u]) ? (isnan(x[c.variable[u]]) ? 1.0 : density(c, u, x[c.variable[u]])) :
               c.kind[u] == LVDJuice.PRODUCT ? prod(p[LVDJuice.child(c, u, e)] for e in kids) :
               sum(c.weight[e] * p[LVDJuice.child(c, u, e)] for e in kids)
    end
    return p
end

"An HCLT over a category of 3, a real number, a count and a real number of another size; and rows of values."
function mixed_circuit(seed; latents=3, N=300, heads=2)
    rng = MersenneTwister(seed)
    X = permutedims([rand(rng, 0:2, N) 2 .* randn(rng, N) .- 1 floor.(-4 .* log.(rand(rng, N))) 1000 .+ 50 .* randn(rng, N)])
    leaves = [LVDJuice.Leaf(LVDJuice.CATEGORICAL, 3, 1, 1), LVDJuice.Leaf(LVDJuice.GAUSSIAN, 0, -1, 2), LVDJuice.Leaf(LVDJuice.POISSON, 0, 4, 4),
              LVDJuice.Leaf(LVDJuice.GAUSSIAN, 0, 1000, 50)]
    return hclt([2, 0, 2, 3]; latents=latents, categories=3, leaves=leaves, heads=heads, seed=seed), X, rand(rng, 1:heads, N), rng
end

@testset "numbers: likelihoods, complete and marginal, by the definition" begin
    for seed in 1:3
        c, X, _, rng = mixed_circuit(seed)
        wanted = reduce(hcat, [log.(mixed_values(c, X[:, n])[c.heads]) for n in axes(X, 2)])
        @test log_likelihood(c, X) ≈ wanted rtol=1e-5
        mask = rand(rng, Bool, size(X)...)
        hidden = reduce(hcat, [log.(mixed_values(c, ifelse.(mask[:, n], NaN, X[:, n]))[c.heads]) for n in axes(X, 2)])
        @test log_likelihood(c, Masked(X, mask)) ≈ hidden rtol=1e-5 atol=1e-6
        exact = reduce(hcat, [LVDJuice.log_values(c, Masked(X, mask), n)[c.heads] for n in axes(X, 2)])
        @test exact ≈ hidden rtol=1e-6 atol=1e-6
    end
    # Densities have integral 1, and counts sum to 1, given another variable and with it.
    c, _, _, _ = mixed_circuit(4)
    grid = range(-25, 25; length=2001)
    p(x, y, hides) = exp.(log_likelihood(c, Masked(Float64[fill(1, 1, length(x)); x'; y'; fill(1000, 1, length(x))],
                                                    repeat(hides, 1, length(x))); heads=1:1))[1, :]
    @test sum(p(grid, zero(grid), [true, false, true, true])) * step(grid) ≈ 1 rtol=1e-5
    @test sum(p(zeros(200), 0:199, [true, true, false, true])) ≈ 1 rtol=1e-5
    @test sum(p(grid, fill(3.0, 2001), [false, false, false, true])) * step(grid) ≈ p([0.0], [3.0], [false, true, false, true])[1] rtol=1e-5
end

@testset "numbers far from all inputs, and densities above 1" begin
    b = LVDJuice.Builder(2)
    near = [LVDJuice.add_gaussians!(b, v, [0.0, 1.0, 40.0], [1e-3, 2e-3, 1.0]) for v in 1:2]
    products = [LVDJuice.add_product!(b, (near[1][i], near[2][j])) for i in 1:3 for j in 1:3]
    c = Circuit(b, [LVDJuice.add_sum!(b, products, fill(1f0 / 9, 9))])
    X = [0.0 0.5 1.0 40.0 1e5 0.0 -3.0; 0.0 0.5 0.0 1.0 1e5 1e6 40.0]
    # By hand, in logarithms.
    part(x) = [-((x - Float32(m)) / Float32(s))^2 / 2 - log(Float32(s)) - log(2 * pi) / 2 for (m, s) in ((0.0, 1e-3), (1.0, 2e-3), (40.0, 1.0))]
    together(t) = maximum(t) + log(sum(exp.(t .- maximum(t))))
    wanted = [together(part(X[1, n])) + together(part(X[2, n])) + log(1 / 9) for n in axes(X, 2)]
    @test vec(log_likelihood(c, X)) ≈ wanted rtol=1e-6
    @test maximum(wanted) > 9
    @test occursin("variable 1: found Inf", message_of(() -> EMJob(c, [0.0 0.0; 0.0 Inf], [1, 1])))
end

@testset "numbers: EM steps by the definition" begin
    for seed in 1:4
        c, X, head_of, rng = mixed_circuit(seed)
        s, a, before = rand(rng, (0.3, 1.0)), rand(rng, (0.0, 0.5)), deepcopy(c)
        weights = 0.5 .+ rand(rng, Float32, size(X, 2))
        sums = zeros(3, length(c.kind))  # sum F, F x, F x^2 of each input
        for n in axes(X, 2)
            flow, _ = reference_flows(c, mixed_values(c, X[:, n]), c.heads[head_of[n]])
            for u in findall(LVDJuice.isinput, c.kind)
                sums[:, u] .+= weights[n] * flow[u] .* [1, X[c.variable[u], n], X[c.variable[u], n]^2]
            end
        end
        finish!(EMJob(c, X, head_of; weights=weights, epochs=1, batch_size=size(X, 2), step_size=(s, s), pseudocount=a))
        for u in findall(k -> LVDJuice.isinput(k) && !LVDJuice.has_table(k), c.kind)
            old = LVDJuice.moments(before, u)
            total = sums[1, u] + a
            mean = (1 - s) * old[1] + s * (sums[2, u] + a * old[1]) / total
            square = (1 - s) * (old[2] + old[1]^2) + s * (sums[3, u] + a * (old[2] + old[1]^2)) / total
            @test entry(c, u, 0) ≈ mean rtol=1e-4
            c.kind[u] == LVDJuice.GAUSSIAN && @test entry(c, u, 1) ≈ max(sqrt(square - mean^2), entry(c, u, 2)) rtol=2e-3
        end
        # The same from the counts of two halves, added up.
        again, counts = deepcopy(before), LVDJuice.ExpectedCounts(before)
        for part in (1:100, 101:300)
            job = LVDJuice.FlowJob(engine(again), X[:, part], head_of[part]; weights=weights[part])
            advance!(job)
            LVDJuice.add!(counts, job.counts)
        end
        LVDJuice.apply!(engine(again), counts, s, a)
        @test again.leaf ≈ c.leaf rtol=1e-4
    end
end

@testset "numbers recover what they were drawn from" begin
    rng, N = MersenneTwister(6), 20_000
    second = rand(rng, N) .< 0.3
    X = permutedims([ifelse.(second, 3.0, -1.0) .+ ifelse.(second, 0.5, 1.0) .* randn(rng, N) zeros(N)])
    poisson(rate) = (k = 0; t = -log(rand(rng)); while t < rate; k += 1; t -= log(rand(rng)); end; k)
    X[2, :] = [poisson(z ? 12.0 : 2.0) for z in second]
    b = LVDJuice.Builder(2)
    reals, counts = LVDJuice.add_gaussians!(b, 1, [0.0, 1.0], [2.0, 2.0]), LVDJuice.add_poissons!(b, 2, [3.0, 6.0])
    c = Circuit(b, [LVDJuice.add_sum!(b, [LVDJuice.add_product!(b, pair) for pair in zip(reals, counts)], [0.5, 0.5])])
    job, before = EMJob(c, X, ones(Int, N); epochs=25, batch_size=N, step_size=(1, 1), pseudocount=0), -Inf
    for _ in 1:25
        mean = advance!(job)[3]
        @test mean >= before - 1e-5
        before = mean
    end
    @test [entry(c, u, k) for u in reals, k in 0:1] ≈ [-1 1; 3 0.5] atol=0.05
    @test [entry(c, u, 0) for u in counts] ≈ [2, 12] atol=0.15
    drawn = sample(c, N; seed=3)
    @test sum(drawn, dims=2) ./ N ≈ sum(X, dims=2) ./ N atol=0.1
    @test sum(drawn[1, :] .* drawn[2, :]) / N ≈ sum(X[1, :] .* X[2, :]) / N rtol=0.03
    @test sum(drawn .^ 2, dims=2) ./ N ≈ sum(X .^ 2, dims=2) ./ N rtol=0.03
    # Given a count of 12, the real number is the second's.
    given = sample(c, Masked([0.0 0.0; 12.0 0.0], [true true; false false]), 2000; seed=1)
    @test sum(given[1, :, 1]) / 2000 ≈ 3 atol=0.1
    @test sum(given[1, :, 2]) / 2000 ≈ -1 atol=0.1
    @test mpe(c, Masked([0.0 0.0; 12.0 0.0], [true true; false false]))[1, :] ≈ [3, -1] atol=0.05
    @test mpe(c, Masked([3.0 0.0; 0.0 0.0], [false true; true true]))[2, 1] in (11, 12)
end

@testset "numbers drawn: counts by their probabilities, at small and large rates" begin
    rng, N = LVDJuice.SplitMix(1), 40_000
    for rate in (0.05, 3.7, 400.0)
        drawn = [LVDJuice.draw_poisson(rng, rate) for _ in 1:N]
        @test sum(drawn) / N ≈ rate atol=5 * sqrt(rate / N)
        @test sum((drawn .- rate) .^ 2) / N ≈ rate rtol=0.1
        x = floor(rate)
        p = exp(LVDJuice.log_poisson(x, rate))
        @test count(==(x), drawn) / N ≈ p atol=5 * sqrt(p / N)
    end
    drawn = [LVDJuice.normal!(rng) for _ in 1:N]
    @test sum(drawn) / N ≈ 0 atol=0.03
    @test sum(drawn .^ 2) / N ≈ 1 atol=0.05
    @test count(<(-1), drawn) / N ≈ 0.1587 atol=0.01
end

@testset "numbers: files, pruned, grown and mixed" begin
    c, X, head_of, rng = mixed_circuit(7)
    finish!(EMJob(c, X, head_of; epochs=2, batch_size=64))
    before = log_likelihood(c, X)
    mktempdir() do folder
        path, again = joinpath(folder, "a.jpc"), joinpath(folder, "b.jpc")
        write_jpc(path, c)
        @test log_likelihood(read_jpc(path), X) ≈ before rtol=1e-5
        write_jpc(again, read_jpc(path))
        @test read(path) == read(again)
        refused(text) = (write(path, text); message_of(() -> read_jpc(path)))
        @test occursin("unit 0: a Gaussian of mean 0.5 and deviation -1.0", refused("jpc 1\nG 0 0 1 0.5 -1 0.1\n"))
        @test occursin("wanted a number", refused("jpc 1\nN 0 0 1 x\n"))
        @test occursin("found 5 fields", refused("jpc 1\nG 0 0 1 0.5\n"))
        @test occursin("found 6 fields on a line `N`", refused("jpc 1\nN 0 0 1 0.5 3\n"))
        @test occursin("another kind", refused("jpc 3\nN 0 0 1 0.5\nG 1 0 1 0 1 0.1\nS 2 0 2 0 -0.693147 1 -0.693147\n"))
        @test occursin("another kind", refused("jpc 3\nI 0 0 1 1\nN 1 0 1 0.5\nS 2 0 2 0 -0.693147 1 -0.693147\n"))
    end
    @test log_likelihood(prune(c, X, head_of; min_flow=0), X)[1, :] ≈ before[1, :] rtol=1e-4
    grown = grow(c, X, head_of; select=[1], threshold=1, noise=0)
    @test log_likelihood(grown, X)[[1, 3], :] ≈ before[[1, 1], :] rtol=1e-5
    LVDJuice.check(grow(c, X, head_of; select=[1], threshold=1, noise=0.3, seed=2))
    @test log_likelihood(mixture([c, c]), X) ≈ before rtol=1e-5
    @test size(posterior_marginals(c, Masked(X, fill(false, 4, 300)))) == (3, 4, 300)
    marginals = posterior_marginals(c, Masked(X, fill(true, 4, 300)))
    @test sum(marginals[:, 1, :], dims=1) ≈ ones(1, 300) && all(iszero, marginals[:, 2:4, :])
    @test occursin("device: found Poisson or Gaussian inputs", message_of(() -> engine(c, LVDJuice.Device(Array))))
    X[3, 5] = 0.5
    @test occursin("row 4, variable 2: found 0.5, wanted a whole number", message_of(() -> EMJob(c, X, head_of)))
end
