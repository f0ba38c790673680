# The verbs of backends: E apart from M, counts that add up over engines, exact work for the samples that need it, one rule of no flow.

using LVDJuice: CPUEngine, accumulate!, add_exact!, apply!, circuit, step_of

"The circuit with parameters of its own."
twin(c) = Circuit(c.num_vars, arrays_of(c)...)

same_parameters(a, b; rtol=1e-4) = close_to(a.weight, b.weight; rtol=rtol) && close_to(a.leaf, b.leaf; rtol=rtol) && close_to(a.success, b.success; rtol=rtol)

@testset "a batch shared out over two jobs, counts added up, is the whole batch" begin
    rng = MersenneTwister(50)
    for (categories, N) in ((4, 130), (200, 130), (4, 9000)), pseudocount in (0.0, 0.1)
        make() = hclt([0, 1, 1, 2]; latents=5, categories=categories, heads=2, seed=3)
        X, head_of, weights = rand(rng, 0:categories - 1, 4, N), rand(rng, 1:2, N), rand(rng, Float32, N)
        c, whole = make(), make()
        finish!(EMJob(whole, X, head_of; weights=weights, epochs=1, batch_size=N, step_size=(0.6, 0.6), pseudocount=pseudocount))
        jobs = [EMJob(c, X[:, part], head_of[part]; weights=weights[part], epochs=1, batch_size=N, step_size=(0.6, 0.6),
                      pseudocount=pseudocount) for part in (1:N ÷ 3, N ÷ 3 + 1:N)]
        counts = ExpectedCounts(c)
        for job in jobs
            expect!(job)
            counts!(counts, job)
        end
        maximise!(jobs[1], counts)
        LVDJuice.settle!(jobs[1].engine)
        @test same_parameters(c, whole)
        @test jobs[1].position == N ÷ 3
    end
end

@testset "the M-step from an engine's own statistics and from its counts is the same" begin
    rng = MersenneTwister(51)
    for trial in 1:20
        V, C = rand(rng, 1:4), rand(rng, 2:4)
        c = random_circuit(rng, V, C, 2)
        other = twin(c)
        X, head_of = rand(rng, 0:C - 1, V, 70), rand(rng, 1:2, 70)
        step, pseudocount = rand(rng, (0.3, 1.0)), rand(rng, (0.0, 0.5))
        for (own, from_counts) in ((c, false), (other, true))
            job = EMJob(own, X, head_of; epochs=1, batch_size=70, step_size=(step, step), pseudocount=pseudocount)
            expect!(job)
            from_counts ? maximise!(job, counts!(ExpectedCounts(own), job)) : maximise!(job)
            LVDJuice.settle!(job.engine)
        end
        @test same_parameters(c, other)
    end
end

@testset "a joint model's batch shared out over two jobs, part by part" begin
    rng = MersenneTwister(52)
    patches = rand(rng, UInt8(0):UInt8(2), 2, 2, 90)
    settings = (epochs=1, batch_size=90, step_size=(0.7, 0.7), pseudocount=0.2, prior_pseudocount=0.1)
    whole = small_joint()
    advance!(JointEMJob(whole..., patches; settings...))
    mine, theirs = small_joint(), small_joint()
    jobs = [JointEMJob(model..., patches[:, :, part]; settings...) for (model, part) in ((mine, 1:40), (theirs, 41:90))]
    for part in 0:2
        foreach(expect!, jobs)
        counts = ExpectedCounts(circuit(LVDJuice.part(jobs[1])))
        foreach(job -> counts!(counts, job), jobs)
        foreach(job -> maximise!(job, counts), jobs)
    end
    for (prior, circuits) in (mine, theirs), (found, wanted) in zip([prior; circuits], [whole[1]; whole[2]])
        @test same_parameters(found, wanted)
    end
end

@testset "counts that are none of the circuit's are refused" begin
    c = hclt([0, 1]; latents=2, categories=3)
    refused(change!, words) = begin
        counts = ExpectedCounts(ones(length(c.weight)), ones(length(c.leaf)))
        change!(counts)
        occursin(words, message_of(() -> LVDJuice.check_counts(c, counts)))
    end
    @test refused(counts -> pop!(counts.weight), "edge flows, the circuit has $(length(c.weight))")
    @test refused(counts -> pop!(counts.leaf), "category flows, the circuit has $(length(c.leaf))")
    @test refused(counts -> counts.weight[2] = NaN, "an edge flow is no finite number >= 0")
    @test refused(counts -> counts.leaf[3] = -1, "an category flow is no finite number >= 0")
    @test refused(counts -> counts.leaf[1] = Inf, "an category flow")
end

@testset "a constant that all weights are multiplied by changes nothing" begin
    rng = MersenneTwister(53)
    for (categories, batch) in ((3, 40), (60, 40), (3, 17)), trial in 1:4
        make() = trial <= 2 ? hclt([0, 1, 1]; latents=4, categories=categories, seed=trial) : random_circuit(MersenneTwister(trial), 3, 3, 1)
        C = trial <= 2 ? categories : 3
        X, weights = rand(rng, 0:C - 1, 3, 40), rand(rng, 40) .+ 0.01
        fit(scale) = begin
            c = make()
            finish!(EMJob(c, X, ones(Int, 40); weights=scale .* weights, epochs=3, batch_size=batch, step_size=(1.0, 1.0), pseudocount=0))
            c
        end
        plain, units = fit(1.0), flows(make(), X, ones(Int, 40); weights=weights)[1]
        for power in (-300, -45, -38, -33, -30, -7, 5, 30, 37, 38, 200)
            scale = 10.0^power
            @test same_parameters(fit(scale), plain)
            @test close_to(flows(make(), X, ones(Int, 40); weights=scale .* weights)[1] ./ scale, units; rtol=1e-5)
        end
        for power in -30:5:30  # a pseudocount is in the weights' units
            scale = 10.0^power
            c, d = make(), make()
            a = clamp(0.1 * scale, 1e-30, 1e20)
            for (own, s) in ((c, scale), (d, 1.0))
                finish!(EMJob(own, X, ones(Int, 40); weights=s .* weights, epochs=1, batch_size=40, step_size=(0.5, 0.5), pseudocount=s == 1.0 ? a / scale : a))
            end
            1e-30 <= a / scale <= 1e20 && 1e-30 < 0.1 * scale < 1e20 && @test same_parameters(c, d)
        end
    end
end

@testset "a unit with next to no flow keeps its parameters, and none become NaN" begin
    # The second component is 1e-40 as likely as the first: its flow is subnormal in single precision.
    for kind in (LVDJuice.CATEGORICAL, LVDJuice.BINOMIAL), categories in (2, 90)
        b = LVDJuice.Builder(2)
        tiny = kind == LVDJuice.BINOMIAL ? 1e-20 : Float32(1e-20)
        add(v, p) = kind == LVDJuice.BINOMIAL ? LVDJuice.add_binomials!(b, v, categories - 1, [p]) :
                    LVDJuice.add_inputs!(b, v, Float32[1 - p p zeros(1, categories - 2)])
        inputs = [[add(v, 0.5)[1], add(v, tiny)[1]] for v in 1:2]
        sums = [LVDJuice.add_sum!(b, [LVDJuice.add_product!(b, [inputs[1][k], inputs[2][k]])], [1]) for k in 1:2]
        c = Circuit(b, [LVDJuice.add_sum!(b, sums, [0.5, 0.5])])
        before = twin(c)
        X = fill(1, 2, 50)
        kind == LVDJuice.BINOMIAL && (X .= categories - 1)
        for step in 1:3
            finish!(EMJob(c, X, ones(Int, 50); epochs=1, batch_size=50, step_size=(1.0, 1.0), pseudocount=0))
            @test all(isfinite, c.weight) && all(isfinite, c.leaf) && all(isfinite, c.success)
        end
        second = [units[2] for units in inputs]
        @test all(c.leaf[LVDJuice.parameter_range(c, u)] == before.leaf[LVDJuice.parameter_range(before, u)] for u in second)
        @test c.weight[end] < 1e-30
    end
end

@testset "only the samples that need it are done exactly" begin
    c = fully_factorized(num_vars=3, num_cats=2)
    c.leaf .= [0.5, 0.5, 1, 0, 0.25, 0.75]
    X = zeros(Int, 3, 1000)
    X[2, 400] = 1  # impossible
    e = engine(c)
    total, uncertain = accumulate!(e, X, LVDJuice.Sources(ones(Int32, 1000)), 1:1000, 1:1000)
    @test uncertain == [400]
    @test total ≈ 999 * (log(0.5) + log(0.25)) rtol=1e-6
    @test add_exact!(e, X, LVDJuice.Sources(ones(Int32, 1000)), 1:1000, 1:1000, uncertain) == (-Inf, [400])
    units, _ = flows(c, X, ones(Int, 1000))
    @test units ≈ fill(999, length(units))
    # Of a weight of 0, nothing is asked.
    weights = ones(Float32, 1000)
    weights[400] = 0
    @test isempty(accumulate!(engine(c), X, LVDJuice.Sources(c, ones(Int, 1000), weights, 1000), 1:1000, 1:1000)[2])
end
