@testset "one EM step of random circuits, against the definition" begin
    rng = MersenneTwister(8)
    for trial in 1:40
        V, C, heads = rand(rng, 1:5), rand(rng, 2:3), rand(rng, 1:3)
        c = random_circuit(rng, V, C, heads)
        N = rand(rng, (1, 63, 64, 65, 300))
        X, head_of = rand(rng, 0:C-1, V, N), rand(rng, 1:heads, N)
        step, pseudocount = rand(rng, (0.1, 1.0)), rand(rng, (0.0, 0.1, 3.0))
        weight, leaf = reference_step(c, X, head_of, step, pseudocount)
        one_step(c, X, head_of; step=step, pseudocount=pseudocount)
        @test close_to(c.weight, weight; rtol=1e-4)
        @test same_inputs(c, leaf; rtol=1e-4)
    end
end

"""
What a full-batch EM step adds up where values are missing, by brute force: for each sample, over all completions of it, each as
likely as it is given what is seen. Missing values count for no input's categories.
"""
function counts_over_completions(c, X, mask, head_of, C)
    edge, leaf, Z = zeros(length(c.weight)), zeros(length(c.leaf)), assignments(size(X, 1), C)
    for n in axes(X, 2)
        head = c.heads[head_of[n]]
        completions = [Z[:, m] for m in axes(Z, 2) if all(i -> mask[i, n] || Z[i, m] == X[i, n], axes(Z, 1))]
        values = [reference_values(c, x) for x in completions]
        total = sum(p[head] for p in values)
        for (x, p) in zip(completions, values)
            p[head] > 0 || continue
            flow, e = reference_flows(c, p, head)
            edge .+= p[head] / total .* e
            for u in eachindex(flow)
                LVDJuice.isinput(c.kind[u]) && !mask[c.variable[u], n] || continue
                leaf[c.param_start[u] + x[c.variable[u]] * c.param_stride[u]] += p[head] / total * flow[u]
            end
        end
    end
    return edge, leaf
end

@testset "EM where values are missing, by enumeration of all completions" begin
    rng = MersenneTwister(81)
    for trial in 1:30
        V, C, heads = rand(rng, 1:5), rand(rng, 2:3), rand(rng, 1:3)
        c = random_circuit(rng, V, C, heads)
        N = rand(rng, (1, 17, 70, 130))
        X, mask, head_of = rand(rng, 0:C-1, V, N), Matrix{Bool}(rand(rng, V, N) .< rand(rng)), rand(rng, 1:heads, N)
        edge, leaf = counts_over_completions(c, X, mask, head_of, C)
        X[mask] .= -7  # what is missing is not looked at
        job = LVDJuice.FlowJob(Plan(c), Masked(X, mask), head_of)
        advance!(job)
        @test close_to(job.counts.weight, edge; rtol=1e-4)
        @test close_to(job.counts.leaf, leaf; rtol=1e-4)
        seen = sum(exp.(log_likelihood(c, Masked(X, mask))[head_of[n], n]) > 0 ? count(.!mask[:, n]) : 0 for n in 1:N)
        @test sum(job.counts.leaf) ≈ seen rtol = 1e-5
        # A step from these counts, in which only seen values are in an input's denominator.
        step, pseudocount = rand(rng, (0.1, 1.0)), rand(rng, (0.0, 0.1, 3.0))
        expected = Circuit(c.num_vars, arrays_of(c)...)
        LVDJuice.apply!(LVDJuice.CPUEngine(Plan(expected)), ExpectedCounts(edge, leaf), step, pseudocount)
        before = log_likelihood(c, Masked(X, mask))
        mean = one_step(c, Masked(X, mask), head_of; step=step, pseudocount=pseudocount)
        @test close_to(c.weight, expected.weight; rtol=1e-4)
        @test close_to(c.leaf, expected.leaf; rtol=1e-4)
        possible = [before[head_of[n], n] for n in 1:N]
        all(isfinite, possible) && @test mean ≈ sum(possible) / N rtol = 1e-5
    end
end

@testset "EM where values are missing never lowers the likelihood of what is seen" begin
    rng = MersenneTwister(82)
    c = hclt([0, 1, 1, 2]; latents=4, categories=5, heads=2)
    X, head_of = rand(rng, 0:4, 4, 200), rand(rng, 1:2, 200)
    X[2, :] .= X[1, :]
    data = Masked(X, Matrix{Bool}(rand(rng, 4, 200) .< 0.4))
    likelihoods = [one_step(c, data, head_of; step=1.0, pseudocount=0.0) for _ in 1:30]
    @test all(diff(likelihoods) .> -1e-5)
    @test likelihoods[end] > likelihoods[1] + 0.1
end

@testset "what nothing is seen of keeps its inputs, and learns nothing" begin
    c = hclt([0, 1, 1]; latents=3, categories=4)
    before = Circuit(c.num_vars, arrays_of(c)...)
    mask = fill(false, 3, 50)
    mask[2, :] .= true
    one_step(c, Masked(rand(MersenneTwister(83), 0:3, 3, 50), mask), ones(Int, 50); step=1.0, pseudocount=0.0)
    for u in 1:num_units(c)
        LVDJuice.isinput(c.kind[u]) || continue
        same = LVDJuice.probabilities(c, u) == LVDJuice.probabilities(before, u)
        @test same == (c.variable[u] == 2)
    end
end

@testset "an EM step of HCLTs" begin
    rng = MersenneTwister(9)
    for latents in (3, 16, 18, 100)
        c = hclt([2, 0, 2, 3, 3]; latents=latents, categories=6, heads=3, seed=latents)
        X, head_of = rand(rng, UInt8(0):UInt8(5), 5, 150), rand(rng, 1:3, 150)
        weight, leaf = reference_step(c, X, head_of, 0.5, 0.1)
        one_step(c, X, head_of; step=0.5, pseudocount=0.1)
        @test close_to(c.weight, weight; rtol=1e-4)
        @test same_inputs(c, leaf; rtol=1e-4)
    end
end

@testset "full-batch EM never lowers the likelihood" begin
    rng = MersenneTwister(10)
    c = hclt([0, 1, 1, 2]; latents=4, categories=5, heads=2)
    X = rand(rng, 0:4, 4, 200)
    X[2, :] .= X[1, :]
    head_of = rand(rng, 1:2, 200)
    likelihoods = [one_step(c, X, head_of; step=1.0, pseudocount=0.0) for _ in 1:30]
    @test all(diff(likelihoods) .> -1e-5)
    @test likelihoods[end] > likelihoods[1] + 0.1
end

@testset "mini-batch EM: pieces, steps and seeds" begin
    rng = MersenneTwister(11)
    X = rand(rng, 0:3, 5, 130)
    head_of = ones(Int, 130)
    train(; pieces, categories=4, kwargs...) = begin
        c = hclt([0, 1, 2, 3, 4]; latents=4, categories=categories)
        job = EMJob(c, X, head_of; epochs=3, batch_size=50, kwargs...)
        while job.epoch < 3
            advance!(job, pieces ? 0.0 : Inf)
        end
        c
    end
    whole = train(pieces=false, seed=1)
    @test whole.weight == train(pieces=true, seed=1).weight
    @test whole.leaf == train(pieces=false, seed=1).leaf
    @test whole.weight != train(pieces=false, seed=2).weight
    small_batches = train(pieces=false, categories=60)
    @test small_batches.leaf == train(pieces=true, categories=60).leaf
    job = EMJob(hclt([0, 1, 2, 3, 4]; latents=2, categories=4), X, head_of; epochs=3, batch_size=50, step_size=(0.1, 0.02))
    @test [(s = LVDJuice.step_of(job); advance!(job); s) for _ in 1:3] ≈ [0.1, 0.06, 0.02]
    # 130 samples in batches of 50: two batches and a short one, which counts.
    job = EMJob(hclt([0, 1, 2, 3, 4]; latents=2, categories=4), X, head_of; epochs=1, batch_size=50)
    @test [advance!(job, 0.0)[1:2] for _ in 1:3] == [(0, 50), (0, 100), (1, 0)]
    @test occursin("heads: found (1, 1), the circuit has heads 0..0",
                   message_of(() -> EMJob(LVDJuice.circuit(job.engine), X, fill(2, 130))))
    @test occursin("heads has 3 entries for 130 samples", message_of(() -> EMJob(LVDJuice.circuit(job.engine), X, [1, 1, 1])))
    @test occursin("batch_size = 0", message_of(() -> EMJob(LVDJuice.circuit(job.engine), X, head_of; batch_size=0)))
end

@testset "EM on soft evidence is EM on the joint model" begin
    # Evidence from K patch distributions: the written-out circuit has, under each latent's leaf, the evidence as a mixture.
    rng = MersenneTwister(12)
    V, K, N = 3, 4, 90
    c = hclt([0, 1, 1]; latents=5, categories=K, seed=4)
    scores = randn(rng, Float32, K, V, N)
    posterior_counts = zeros(length(c.leaf))
    Z = assignments(V, K)
    for n in 1:N
        prior = exp.(vec(log_likelihood(c, Z)))
        weights = [prior[m] * prod(exp(Float64(scores[Z[i, m] + 1, i, n])) for i in 1:V) for m in axes(Z, 2)]
        weights ./= sum(weights)
        for m in axes(Z, 2)
            flow, _ = reference_flows(c, reference_values(c, Z[:, m]), c.heads[1])
            for u in eachindex(flow)
                LVDJuice.isinput(c.kind[u]) || continue
                posterior_counts[c.param_start[u] + Z[c.variable[u], m] * c.param_stride[u]] += weights[m] * flow[u]
            end
        end
    end
    expected = copy(Float64.(c.leaf))
    for u in eachindex(c.kind)
        LVDJuice.isinput(c.kind[u]) || continue
        r = range(c.param_start[u], step=c.param_stride[u], length=K)
        expected[r] .= (posterior_counts[r] .+ 0.1 / K) ./ (sum(posterior_counts[r]) + 0.1)
    end
    finish!(EMJob(c, SoftEvidence(scores), ones(Int, N); epochs=1, batch_size=N, step_size=(1.0, 1.0), pseudocount=0.1))
    @test close_to(c.leaf, expected; rtol=1e-4)
end

@testset "evidence that is certain teaches inputs of all kinds what its categories do" begin
    rng = MersenneTwister(35)
    for trial in 1:20
        V, C = rand(rng, 2:4), rand(rng, 2:4)
        c = random_circuit(rng, V, C, 1)
        X, other = rand(rng, 0:C - 1, V, 50), deepcopy(c)
        scores = Float32[X[i, n] == k ? 0 : -Inf for k in 0:C - 1, i in 1:V, n in 1:50]
        settings = (epochs=2, batch_size=30, step_size=(0.9, 0.5), pseudocount=0.1)
        finish!(EMJob(c, X, ones(Int, 50); settings...))
        finish!(EMJob(other, SoftEvidence(scores), ones(Int, 50); settings...))
        @test close_to(other.weight, c.weight; rtol=1e-4) && close_to(other.leaf, c.leaf; rtol=1e-4) && close_to(other.success, c.success; rtol=1e-4)
    end
end

@testset "an impossible sample of weight zero counts for nothing" begin
    c = hclt([0, 1]; latents=2, categories=2)
    c.leaf .= [1, 1, 0, 0, 1, 1, 0, 0]  # category 1 is impossible
    @test isfinite(finish!(EMJob(c, [0 1; 0 1], [1, 1]; weights=[1, 0], epochs=1)))
end

@testset "tables of inputs of any size" begin
    rng = MersenneTwister(34)
    for latents in (1, 2, 7, 15, 16, 17, 31, 33, 50), categories in (2, 5)
        c = hclt([0, 1, 1]; latents=latents, categories=categories, seed=latents)
        X, head_of = rand(rng, UInt8(0):UInt8(categories - 1), 3, 90), ones(Int, 90)
        weight, leaf = reference_step(c, X, head_of, 0.7, 0.3)
        finish!(EMJob(c, X, head_of; epochs=1, batch_size=90, step_size=(0.7, 0.7), pseudocount=0.3))
        @test same_inputs(c, leaf; rtol=1e-4) && close_to(c.weight, weight; rtol=1e-4)
    end
end

"Whole epochs of EM in batches, in the order of the samples, step by step from the definition."
function reference_epochs!(c, X, head_of, batch_size, steps, pseudocount)
    for step in steps, first in 1:batch_size:size(X, 2)
        batch = first:min(first + batch_size - 1, size(X, 2))
        weight, leaf = reference_step(c, X[:, batch], head_of[batch], step, pseudocount)
        c.weight .= weight
        c.leaf .= leaf
    end
end

"The circuit with the inputs' parameters in each table in reverse order, so that each input is a group of its own."
function backwards(c, reverse_tables)
    start, inputs = copy(c.param_start), findall(LVDJuice.isinput, c.kind)
    for i in (reverse_tables ? (1:c.num_vars) : ())
        units = [u for u in inputs if c.variable[u] == i]
        start[units] = reverse(start[units])
    end
    arrays = arrays_of(c)
    arrays[4] = start
    return Circuit(c.num_vars, arrays...)
end

@testset "steps that change the categories of a batch alone are plain steps" begin
    rng = MersenneTwister(41)
    for (latents, pseudocount, steps) in ((3, 0.1, fill(0.3, 6)), (16, 0.5, fill(0.9, 20)), (21, 0.0, [0.2, 1.0, 0.2]), (40, 0.1, [0.5, 0.5]))
        make() = backwards(hclt([2, 0, 2, 3, 3]; latents=latents, categories=70, heads=2, seed=latents), latents == 3)
        N = 150
        X, head_of = rand(rng, Int32(0):Int32(69), 5, N), rand(rng, 1:2, N)
        X[1, :] .= 69  # the last row of a table, for all samples
        c, expected = make(), make()
        job = EMJob(c, X, head_of; epochs=length(steps), batch_size=66, step_size=(steps[1], steps[end]), shuffle=false,
                    pseudocount=pseudocount)
        @test job.engine.inputs !== nothing
        for _ in steps
            reference_epochs!(expected, X, head_of, 66, LVDJuice.step_of(job), pseudocount)
            advance!(job, 0.0)  # between two calls the circuit is a circuit like any other
            @test all(abs.(sum(reshape(c.leaf[1:70latents], latents, 70); dims=2) .- 1) .< 1e-4)
        end
        @test close_to(c.leaf, expected.leaf; rtol=1e-3) && close_to(c.weight, expected.weight; rtol=1e-3)
        before = copy(c.leaf)
        LVDJuice.settle!(job.engine)
        @test c.leaf == before
    end
end

@testset "random circuits in small batches" begin
    rng = MersenneTwister(42)
    tried = 0
    while tried < 25
        c = random_circuit(rng, rand(rng, 1:4), 9, 2)
        N = rand(rng, 1:9)
        X, head_of = rand(rng, 0:8, c.num_vars, N), rand(rng, 1:2, N)
        job = EMJob(c, X, head_of; epochs=1, batch_size=9, step_size=(0.4, 0.4), pseudocount=0.1)
        job.engine.inputs === nothing && continue  # a binomial
        tried += 1
        weight, leaf = reference_step(c, X, head_of, 0.4, 0.1)
        finish!(job)
        @test close_to(c.weight, weight; rtol=1e-4) && same_inputs(c, leaf; rtol=1e-4)
    end
end

@testset "small batches with missing values, which are not looked at" begin
    rng = MersenneTwister(45)
    X, head_of = rand(rng, Int32(0):Int32(69), 5, 150), rand(rng, 1:2, 150)
    mask = Matrix{Bool}(rand(rng, 5, 150) .< 0.4)
    mask[2, 1:66] .= true  # nothing of it is seen in the first batch
    X[mask] .= rand(rng, (-7, 500))
    for latents in (3, 21)
        make() = backwards(hclt([2, 0, 2, 3, 3]; latents=latents, categories=70, heads=2, seed=latents), latents == 3)
        c, expected = make(), make()
        job = EMJob(c, Masked(X, mask), head_of; epochs=4, batch_size=66, step_size=(0.6, 0.6), shuffle=false, pseudocount=0.1)
        @test job.engine.inputs !== nothing
        finish!(job)
        plain = LVDJuice.CPUEngine(Plan(expected))
        for _ in 1:4, first in 1:66:150
            _, uncertain = LVDJuice.accumulate!(plain, Masked(X, mask), LVDJuice.Sources(head_of), 1:150, first:min(first + 65, 150))
            @test isempty(uncertain)
            LVDJuice.apply!(plain, 0.6, 0.1)
        end
        @test close_to(c.leaf, expected.leaf; rtol=1e-3) && close_to(c.weight, expected.weight; rtol=1e-3)
    end
    tried = 0
    while tried < 10
        V, N = rand(rng, 1:3), rand(rng, 1:9)
        c = random_circuit(rng, V, 9, 2)
        X, mask, head_of = rand(rng, 0:8, V, N), Matrix{Bool}(rand(rng, V, N) .< 0.5), rand(rng, 1:2, N)
        job = EMJob(c, Masked(X, mask), head_of; epochs=1, batch_size=9, step_size=(0.4, 0.4), pseudocount=0.1)
        job.engine.inputs === nothing && continue  # a binomial
        tried += 1
        expected, counts = Circuit(c.num_vars, arrays_of(c)...), ExpectedCounts(counts_over_completions(c, X, mask, head_of, 9)...)
        LVDJuice.apply!(LVDJuice.CPUEngine(Plan(expected)), counts, 0.4, 0.1)
        finish!(job)
        @test close_to(c.weight, expected.weight; rtol=1e-4) && close_to(c.leaf, expected.leaf; rtol=1e-4)
    end
end

@testset "many small batches: the same parameters in pieces of any length" begin
    X = rand(MersenneTwister(43), 0:29, 6, 1010)
    train(seconds) = begin
        c = hclt([0, 1, 2, 3, 4, 5]; latents=4, categories=30)
        job = EMJob(c, X, ones(Int, 1010); epochs=2, batch_size=10)
        calls = 0
        while job.epoch < 2
            _, position, _ = advance!(job, seconds)
            calls += 1
            @test position % (10 * LVDJuice.steps_at_once(job.engine, 10)) == 0
            @test all(abs.(sum(reshape(c.leaf[1:120], 4, 30); dims=2) .- 1) .< 1e-4)
        end
        c, calls
    end
    (whole, few), (pieces, many) = train(Inf), train(0.0)
    @test few == 2 && many > 2
    @test whole.leaf == pieces.leaf && whole.weight == pieces.weight
end

@testset "pseudocounts that single precision cannot work with are refused, those next to them leave probabilities" begin
    X = rand(MersenneTwister(44), 0:1, 3, 40)
    fit(pseudocount) = begin
        c = hclt([0, 1, 2]; latents=2, categories=4, heads=2)  # the second head and two categories have no flow
        finish!(EMJob(c, X, ones(Int, 40); epochs=2, batch_size=40, step_size=(0.5, 0.5), pseudocount=pseudocount))
        c
    end
    for pseudocount in (0, 1e-30, 1e20)
        c = fit(pseudocount)
        @test all(isfinite, c.weight) && all(isfinite, c.leaf)
    end
    for pseudocount in (-1, NaN, Inf, 1e39, 1e-40)
        @test_throws ArgumentError fit(pseudocount)
        @test_throws ArgumentError MutualInformationJob(X; categories=2, pseudocount=pseudocount)
    end
end
