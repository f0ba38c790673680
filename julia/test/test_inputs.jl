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
