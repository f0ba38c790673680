# EiNets, and the sums over all pairs of two groups' units that they are made of: what the engine makes of these without the products.

"Small EiNets over all kinds of region graphs."
const SMALL_EINETS = (
    (num_vars=4, depth=2, replicas=3), (num_vars=5, depth=1, replicas=2), (num_vars=1, depth=1, replicas=1), (num_vars=6, depth=9, replicas=4),
    (shape=(2, 3, 1), steps=(1,)), (shape=(3, 2, 1), steps=(2, 1)), (shape=(1, 3, 2), steps=(1,)), (shape=(2, 2, 1), steps=(2,)))

fused(schedule) = count(g -> g.pairs !== nothing, schedule.groups)

@testset "grids of regions" begin
    # All rectangles of a 3 x 2 grid, each cut in all ways, and the pixels' channels together.
    regions = LVDJuice.grid_region_graph((3, 2, 2), (1,))
    @test regions[1].scope == 1:12
    @test length(regions) == 6 * 3 && allunique(r.scope for r in regions)
    rows_and_columns(scope) = length(unique((v - 1) ÷ 4 for v in scope)), length(unique((v - 1) ÷ 2 % 2 for v in scope))
    for region in regions
        height, width = rows_and_columns(region.scope)
        @test issorted(region.scope) && length(region.scope) == height * width * 2
        @test length(region.partitions) == height - 1 + width - 1
        @test all(((i, j),) -> sort(vcat(regions[i].scope, regions[j].scope)) == region.scope, region.partitions)
    end
    # Steps of 4, with rests: cuts at 4 and 8 only.
    regions = LVDJuice.grid_region_graph((10, 1, 1), (4,))
    @test sort([extrema(r.scope) for r in regions]) == [(1, 4), (1, 8), (1, 10), (5, 8), (5, 10), (9, 10)]
    # The largest step first; a smaller one goes on where it has no multiple.
    regions = LVDJuice.grid_region_graph((8, 1, 1), (4, 2))
    @test sort([extrema(r.scope) for r in regions]) == [(1, 2), (1, 4), (1, 8), (3, 4), (5, 6), (5, 8), (7, 8)]
    @test length(LVDJuice.grid_region_graph((4, 4, 3), (4,))) == 1
    for (shape, steps) in (((6, 7, 2), (3,)), ((9, 5, 1), (4, 2, 1)), ((4, 4, 3), (3, 2)), ((2, 2, 1), (5,)))
        regions = LVDJuice.grid_region_graph(shape, steps)
        @test LVDJuice.grid_size(shape, steps) == (sum(r -> length(r.partitions), regions), sum(r -> length(r.scope), regions))
    end
end

@testset "the size of an EiNet, counted by hand" begin
    # 1 x 3 pixels: the whole has 2 partitions, of a pixel and a pair each; a pair has one.
    K, C, heads = 4, 5, 2
    c = einet(shape=(1, 3, 1), steps=(1,), num_sums=K, num_cats=C, heads=heads, seed=1)
    @test count(LVDJuice.isinput, c.kind) == 3K
    @test count(==(LVDJuice.PRODUCT), c.kind) == 4 * K^2
    @test count(==(LVDJuice.SUM), c.kind) == 2K + 2 * heads + heads  # pairs; einsums of the whole; and what mixes these
    @test num_params(c) == 3K * C + (2K + 2 * heads) * K^2 + 2 * heads
    @test fused(Schedule(c)) == 4
    @test all(h -> length(LVDJuice.children(c, h)) == 2, c.heads)
end

@testset "EiNets: likelihoods, masked ones and flows of small ones, by enumeration" begin
    rng = MersenneTwister(90)
    kinds = (LVDJuice.CATEGORICAL, LVDJuice.BINOMIAL, LVDJuice.LOGISTIC)
    for graph in SMALL_EINETS, (K, kind) in ((1, kinds[1]), (3, kinds[1]), (2, kinds[2]), (4, kinds[3]), (7, kinds[1]))
        c = einet(; graph..., num_sums=K, num_cats=2, leaves=[Leaf(kind, 2)], heads=2, perturbation=0.9, seed=K)
        X = assignments(c.num_vars, 2)
        p = exp.(log_likelihood(c, X))
        @test all(isapprox.(sum(p, dims=2), 1; atol=1e-5))
        @test close_to(p, reduce(hcat, [reference_values(c, X[:, n])[c.heads] for n in axes(X, 2)]))
        masked = Masked(X, rand(rng, Bool, size(X)))
        seen(n) = [masked.mask[v, n] ? -1 : X[v, n] for v in axes(X, 1)]
        @test close_to(exp.(log_likelihood(c, masked)), reduce(hcat, [reference_values(c, seen(n))[c.heads] for n in axes(X, 2)]))
        head_of = rand(rng, 1:2, size(X, 2))
        units, edges = flows(c, X, head_of)
        expected = [reference_flows(c, reference_values(c, X[:, n]), c.heads[head_of[n]]) for n in axes(X, 2)]
        @test isapprox(units, sum(first, expected); rtol=1e-4)
        sums = [e for u in sums_of(c) for e in LVDJuice.edges(c, u)]
        @test isapprox(edges[sums], sum(last, expected)[sums]; rtol=1e-4)
    end
end

@testset "sums over pairs: likelihoods, flows and steps are those of the products' own values" begin
    rng = MersenneTwister(91)
    wide = LVDJuice.WIDE[]
    try
        for registers in (false, wide), K in (2, 5, 17, 24), graph in ((num_vars=9, depth=3, replicas=3), (shape=(3, 4, 1), steps=(1,)))
            LVDJuice.WIDE[] = registers
            make() = K == 5 ? rat_spn(; num_vars=9, depth=3, replicas=4, num_sums=K, num_inputs=3, num_cats=6, heads=2, perturbation=0.9, seed=1) :
                              einet(; graph..., num_sums=K, num_cats=6, heads=2, perturbation=0.9, seed=K)
            c = make()
            X = rand(rng, 0:5, c.num_vars, 150)
            head_of, weights = Int32.(rand(rng, 1:2, 150)), rand(rng, Float32, 150)
            plans = (Plan(c), Plan(c; fuse=false))
            @test fused(plans[1].schedule) > 0 && fused(plans[2].schedule) == 0
            @test plans[1].value_columns < plans[2].value_columns
            found = map(plans) do plan
                out, job = zeros(2, 150), LVDJuice.FlowJob(plan, X, head_of; weights=weights)
                @test isempty(LVDJuice.log_likelihood!(out, LVDJuice.CPUEngine(plan), X, 1:2))
                LVDJuice.advance!(job)
                out, job.counts.weight, job.counts.leaf
            end
            @test close_to(found[1][1], found[2][1])
            @test isapprox(found[1][2], found[2][2]; rtol=1e-5)
            @test isapprox(found[1][3], found[2][3]; rtol=1e-5)
            stepped = map((true, false)) do fuse
                own = make()
                e = LVDJuice.CPUEngine(Plan(own; fuse=fuse); batch_size=150)
                for _ in 1:3
                    expect!(e, X, LVDJuice.Sources(head_of), Int32.(1:150), 1:150)
                    LVDJuice.apply!(e, 0.5, 0.1)
                end
                LVDJuice.settle!(e)
                own
            end
            @test isapprox(stepped[1].weight, stepped[2].weight; rtol=1e-4)
            @test isapprox(stepped[1].leaf, stepped[2].leaf; rtol=1e-4)
        end
    finally
        LVDJuice.WIDE[] = wide
    end
end

@testset "pairs that somebody else looks at keep their values" begin
    function over_pairs(extra)
        b = LVDJuice.Builder(3)
        inputs = [LVDJuice.add_inputs!(b, v, Float32[0.1 0.9; 0.3 0.7; 0.8 0.2]) for v in 1:3]
        products = LVDJuice.add_pairs!(b, [(1, 2)], inputs)
        sums = [LVDJuice.add_sum!(b, products, fill(1f0 / 9, 9)) for _ in 1:2]
        extra == "none" && return Circuit(b, sums)
        extra == "head" && return Circuit(b, [sums[1], products[4]])
        extra == "sparse" && return Circuit(b, [sums[1], LVDJuice.add_sum!(b, products[2:3], Float32[0.5, 0.5])])
        return Circuit(b, [LVDJuice.add_product!(b, [products[4], inputs[3][1]]), LVDJuice.add_product!(b, [sums[1], inputs[3][2]])])
    end
    for (extra, expected) in (("none", 1), ("head", 0), ("sparse", 0), ("product", 0))
        c = over_pairs(extra)
        @test fused(Schedule(c)) == expected
        X = assignments(3, 2)
        @test close_to(exp.(log_likelihood(c, X)), reduce(hcat, [reference_values(c, X[:, n])[c.heads] for n in axes(X, 2)]))
    end
end

@testset "an image's worth of an EiNet against Float64 in the log domain, and what underflow takes from pairs" begin
    rng = MersenneTwister(92)
    c = einet(shape=(28, 28, 1), steps=(7,), num_sums=10, num_cats=256, perturbation=0.9, seed=1)
    for u in eachindex(c.kind)  # peaked inputs, as learned ones are
        LVDJuice.isinput(c.kind[u]) || continue
        own = LVDJuice.probabilities(c, u)
        own .= own .^ 8 ./ sum(own .^ 8)
    end
    X = rand(rng, UInt8, 784, 70)
    reference = [LVDJuice.log_values(c, X, n)[c.heads[1]] for n in axes(X, 2)]
    @test maximum(reference) < -3000
    @test close_to(vec(log_likelihood(c, X)), reference)
    # Parameters so far below each other that pairs underflow: what is lost is noticed.
    for trial in 1:30
        c = sharpen!(rng, einet(; rand(rng, SMALL_EINETS)..., num_sums=rand(rng, 2:4), num_cats=2, perturbation=0.9, seed=trial), 40)
        X = assignments(c.num_vars, 2)
        exact = [LVDJuice.log_values(c, X, n)[c.heads[1]] for n in axes(X, 2)]
        found = vec(log_likelihood(c, X))
        @test isfinite.(found) == isfinite.(exact)
        @test same_nats(found[isfinite.(exact)], exact[isfinite.(exact)])
        possible = findall(isfinite, exact)
        isempty(possible) && continue
        _, edges = flows(c, X[:, possible], ones(Int, length(possible)))
        expected, _, _ = exact_statistics(c, X[:, possible], ones(Int, length(possible)))
        sums = [e for u in sums_of(c) for e in LVDJuice.edges(c, u)]
        @test maximum(abs.(edges[sums] .- expected[sums])) < 1e-4 * size(X, 2)
    end
end

@testset "queries of EiNets: conditional samples and marginals go by pairs too" begin
    rng = MersenneTwister(93)
    c = einet(shape=(2, 2, 1), steps=(1,), num_sums=3, num_cats=3, perturbation=0.9, seed=2)
    X, hidden = [2, 0, 1, 2], [true, false, true, false]
    given = Masked(reshape(X, 4, 1), reshape(hidden, 4, 1))
    completions = [[hidden[v] ? x[v] : X[v] for v in 1:4] for x in eachcol(assignments(4, 3)) if x[.!hidden] == X[.!hidden]]
    p = [reference_values(c, x)[c.heads[1]] for x in completions]
    p ./= sum(p)
    marginals = posterior_marginals(c, given)[:, :, 1]
    @test close_to(marginals[:, 1], [sum(p[i] for i in eachindex(p) if completions[i][1] == k) for k in 0:2]; rtol=1e-4)
    drawn = sample(c, given, 20_000; seed=1)[:, :, 1]
    found = [count(==(x), eachcol(drawn)) / 20_000 for x in completions]
    @test maximum(abs.(found .- p)) < 4 * sqrt(maximum(p) / 20_000)
    @test maximum(abs.([count(==(x), eachcol(sample(c, 20_000; seed=2))) / 20_000 - reference_values(c, x)[c.heads[1]]
                        for x in completions])) < 0.01
end

@testset "bad sizes of an EiNet are named" begin
    sizes = (num_sums=2, num_cats=2)
    @test_throws ArgumentError einet(; num_vars=4, depth=0, replicas=1, sizes...)
    @test_throws ArgumentError einet(; shape=(2, 2, 1), steps=(), sizes...)
    @test_throws ArgumentError einet(; shape=(2, 2, 1), steps=(0,), sizes...)
    @test_throws ArgumentError einet(; shape=(2, 2, 1), steps=(1,), num_sums=2, num_cats=2, leaves=[Leaf(2), Leaf(2)])
    @test_throws ArgumentError einet(; shape=(64, 64, 3), steps=(1,), num_sums=10^4, num_cats=256)
end
