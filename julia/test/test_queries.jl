# Queries on random circuits, against enumeration of all assignments.

"A random circuit, samples, a mask, a head for each sample, all assignments Z, and their probabilities (heads, assignments)."
function random_query(rng; N=rand(rng, (1, 17, 70)))
    V, C, heads = rand(rng, 1:5), rand(rng, 2:3), rand(rng, 1:3)
    c = random_circuit(rng, V, C, heads)
    Z = assignments(V, C)
    P = reduce(hcat, [reference_values(c, Z[:, m])[c.heads] for m in axes(Z, 2)])
    X, mask = rand(rng, Int32(0):Int32(C - 1), V, N), rand(rng, V, N) .< rand(rng)
    return c, X, Matrix{Bool}(mask), rand(rng, 1:heads, N), Z, P
end

"Which assignments agree with what is observed in sample n."
agreeing(X, mask, Z, n) = [all(i -> mask[i, n] || Z[i, m] == X[i, n], axes(Z, 1)) for m in axes(Z, 2)]

"Posterior over all assignments for sample n; sums to 1, or to 0 where the evidence is impossible."
function posterior(X, mask, head_of, Z, P, n)
    p = P[head_of[n], :] .* agreeing(X, mask, Z, n)
    return sum(p) > 0 ? p ./ sum(p) : p
end

"Samples with possible evidence."
possible(X, mask, head_of, Z, P) = [n for n in axes(X, 2) if sum(posterior(X, mask, head_of, Z, P, n)) > 0]

"The index in assignments(V, C) of each column."
index_of(rows, C) = [1 + sum(Int(rows[i, j]) * C^(i - 1) for i in axes(rows, 1)) for j in axes(rows, 2)]

"""
Pearson's chi-square of frequencies against probabilities, in standard deviations of a normal variable (Wilson and Hilferty
1931): above 4 once in 30,000 times.
"""
function chi_square(indices, p)
    expected = length(indices) .* p
    counts = zeros(length(p))
    for i in indices
        counts[i] += 1
    end
    @test all(counts[p .== 0] .== 0)
    common = expected .>= 5  # cells too small for the approximation count as one
    cells, means = [counts[common]; sum(counts[.!common])], [expected[common]; sum(expected[.!common])]
    keep = means .>= 1
    freedom = count(keep) - 1
    freedom == 0 && return 0.0
    chi = sum((cells[keep] .- means[keep]) .^ 2 ./ means[keep])
    return ((chi / freedom)^(1 / 3) - (1 - 2 / (9 * freedom))) / sqrt(2 / (9 * freedom))
end

@testset "marginal likelihoods, by enumeration" begin
    rng = MersenneTwister(20)
    for trial in 1:30
        c, X, mask, head_of, Z, P = random_query(rng)
        ll = log_likelihood(c, Masked(X, mask))
        for n in axes(X, 2), h in axes(P, 1)
            @test isapprox(exp(ll[h, n]), sum(P[h, agreeing(X, mask, Z, n)]); rtol=1e-5, atol=1e-12)
        end
        X[mask] .= -7  # hidden values are not looked at
        @test log_likelihood(c, Masked(X, mask)) == ll
        @test all(isapprox.(log_likelihood(c, Masked(X, trues(size(X)) |> Matrix{Bool})), 0; atol=1e-5))  # normalised
    end
end

@testset "flows of random circuits, against the definition" begin
    rng = MersenneTwister(21)
    for trial in 1:30
        c, X, _, head_of, Z, P = random_query(rng)
        weights = rand(rng, Float32, size(X, 2)) .+ 0.1f0
        units, edge_flows = flows(c, X, head_of; weights=weights)
        expected_units, expected_edges = zeros(length(c.kind)), zeros(length(c.weight))
        for n in axes(X, 2)
            values, head = reference_values(c, X[:, n]), c.heads[head_of[n]]
            values[head] > 0 || continue
            flow, edge = reference_flows(c, values, head)
            for u in eachindex(c.kind)
                c.kind[u] == LVDJuice.PRODUCT && (edge[LVDJuice.edges(c, u)] .= flow[u])
            end
            expected_units .+= weights[n] .* flow
            expected_edges .+= weights[n] .* edge
        end
        @test close_to(units, expected_units; rtol=1e-4)
        @test close_to(edge_flows, expected_edges; rtol=1e-4)
        # What flows into a variable's inputs is what the samples weigh; what flows out of a sum is what flows in.
        total = sum(Float64[weights[n] for n in possible(X, falses(size(X)), head_of, Z, P)])
        for i in 1:c.num_vars
            inputs = [u for u in eachindex(units) if LVDJuice.isinput(c.kind[u]) && c.variable[u] == i]
            @test isapprox(sum(units[inputs]), total; rtol=1e-5, atol=1e-9)
        end
        for u in eachindex(units)
            c.kind[u] == LVDJuice.SUM && @test isapprox(sum(edge_flows[LVDJuice.edges(c, u)]), units[u]; rtol=1e-5, atol=1e-6)
        end
    end
end

@testset "posterior marginals, by enumeration" begin
    rng = MersenneTwister(22)
    for trial in 1:30
        c, X, mask, head_of, Z, P = random_query(rng)
        keep = possible(X, mask, head_of, Z, P)
        marginals = posterior_marginals(c, Masked(X[:, keep], mask[:, keep]); head_of=head_of[keep])
        for (j, n) in enumerate(keep)
            p = posterior(X, mask, head_of, Z, P, n)
            expected = [sum(p[Z[i, :] .== k]) for k in 0:maximum(Z), i in axes(X, 1)]
            @test all(isapprox.(marginals[:, :, j], expected; rtol=1e-5, atol=1e-7))
        end
    end
end

@testset "samples have the circuit's distribution" begin
    rng = MersenneTwister(23)
    for trial in 1:15
        c, _, _, _, Z, P = random_query(rng; N=1)
        head = rand(rng, axes(P, 1))
        rows = sample(c, 20_000; head=head, seed=trial)
        @test chi_square(index_of(rows, maximum(Z) + 1), P[head, :] ./ sum(P[head, :])) < 4
        @test rows[:, 1:7] == sample(c, 7; head=head, seed=trial)
        @test rows != sample(c, 20_000; head=head, seed=trial + 1) || maximum(P[head, :]) > 0.999
    end
end

@testset "conditional samples have the posterior distribution" begin
    rng = MersenneTwister(24)
    for trial in 1:15
        c, X, mask, head_of, Z, P = random_query(rng; N=3)
        keep = possible(X, mask, head_of, Z, P)
        isempty(keep) && continue
        rows = sample(c, Masked(X[:, keep], mask[:, keep]), 4000; head_of=head_of[keep], seed=trial)
        for (j, n) in enumerate(keep)
            @test all(rows[.!mask[:, n], :, j] .== X[.!mask[:, n], n])
            @test chi_square(index_of(rows[:, :, j], maximum(Z) + 1), posterior(X, mask, head_of, Z, P, n)) < 4
        end
    end
end

"As reference_values, where a sum counts as its best weighted child."
function reference_best(c, x)
    p = zeros(length(c.kind))
    for u in eachindex(p)
        kids = LVDJuice.edges(c, u)
        p[u] = if LVDJuice.isinput(c.kind[u])
            Float64(c.leaf[c.param_start[u] + x[c.variable[u]] * c.param_stride[u]])
        elseif c.kind[u] == LVDJuice.PRODUCT
            prod(p[LVDJuice.child(c, u, e)] for e in kids)
        else
            maximum(c.weight[e] * p[LVDJuice.child(c, u, e)] for e in kids)
        end
    end
    return p
end

@testset "most probable completions, by enumeration of the max-product values" begin
    rng = MersenneTwister(25)
    for trial in 1:30
        c, X, mask, head_of, Z, P = random_query(rng)
        best = reduce(hcat, [reference_best(c, Z[:, m])[c.heads] for m in axes(Z, 2)])
        keep = possible(X, mask, head_of, Z, P)
        isempty(keep) && continue
        completed = mpe(c, Masked(X[:, keep], mask[:, keep]); head_of=head_of[keep])
        found = index_of(completed, maximum(Z) + 1)
        for (j, n) in enumerate(keep)
            fitting = agreeing(X, mask, Z, n)
            @test fitting[found[j]]
            @test best[head_of[n], found[j]] ≈ maximum(best[head_of[n], fitting]) rtol=1e-9
        end
    end
end

@testset "a deterministic circuit's completions are exact" begin
    # A sum whose children are told apart by an indicator each: max-product is the maximum.
    rng = MersenneTwister(26)
    b = LVDJuice.Builder(3)
    indicators = LVDJuice.add_indicators!(b, 1, 0:2, 3)
    tables = [Float32[t[k] / sum(t) for _ in 1:1, k in 1:3] for t in (rand(rng, 3) for _ in 1:6)]
    inputs = [LVDJuice.add_inputs!(b, 2 + (j - 1) ÷ 3, tables[j])[1] for j in 1:6]
    products = [LVDJuice.add_product!(b, [indicators[k], inputs[k], inputs[3 + k]]) for k in 1:3]
    c = Circuit(b, [LVDJuice.add_sum!(b, products, Float32[0.3, 0.3, 0.4])])
    Z = assignments(3, 3)
    p = vec(log_likelihood(c, Z))
    @test vec(mpe(c, Masked(zeros(Int32, 3, 1), fill(true, 3, 1)))) == Z[:, argmax(p)]
end

@testset "queries given soft evidence" begin
    rng = MersenneTwister(27)
    for trial in 1:10
        c, X, _, head_of, Z, P = random_query(rng; N=rand(rng, (2, 70)))
        C, V, N = maximum(Z) + 1, size(X, 1), size(X, 2)
        scores = randn(rng, Float32, C, V, N) .* 2 .- 900
        weight(p, m, n) = p * prod(exp(Float64(scores[Z[i, m] + 1, i, n]) + 900) for i in 1:V)
        P_evidence = [weight(P[head_of[n], m], m, n) for m in axes(Z, 2), n in 1:N]
        P_evidence ./= sum(P_evidence, dims=1)
        evidence = SoftEvidence(copy(scores))
        marginals = posterior_marginals(c, evidence; head_of=head_of)
        for n in 1:N
            expected = [sum(P_evidence[Z[i, :] .== k, n]) for k in 0:C - 1, i in 1:V]
            @test all(isapprox.(marginals[:, :, n], expected; rtol=1e-4, atol=1e-6))
        end
        rows = sample(c, SoftEvidence(copy(scores)), 2000; head_of=head_of, seed=trial)
        @test all(n -> chi_square(index_of(rows[:, :, n], C), P_evidence[:, n]) < 4, 1:2)
        best = [weight(reference_best(c, Z[:, m])[c.heads[head_of[n]]], m, n) for m in axes(Z, 2), n in 1:N]
        found = index_of(mpe(c, SoftEvidence(copy(scores)); head_of=head_of), C)
        @test all(n -> isapprox(best[found[n], n], maximum(best[:, n]); rtol=1e-5), 1:N)
    end
end

"Two states; the first is 1e-60 below the second on variables 1 and 2, and the second impossible where variable 3 is 0."
function underflowing_circuit()
    b = LVDJuice.Builder(4)
    tiny = Float32[1e-30 1; 1 0]
    inputs = [LVDJuice.add_inputs!(b, v, v < 3 ? tiny : Float32[1 0; 0 1]) for v in 1:3]
    hidden = LVDJuice.add_inputs!(b, 4, Float32[0.25 0.75; 0.5 0.5])
    pairs = [LVDJuice.add_product!(b, [inputs[1][k], inputs[2][k]]) for k in 1:2]
    copies = [LVDJuice.add_sum!(b, [p], [1.0]) for p in pairs]
    whole = [LVDJuice.add_product!(b, [copies[k], inputs[3][k], hidden[k]]) for k in 1:2]
    return Circuit(b, [LVDJuice.add_sum!(b, whole, [0.5, 0.5])])
end

@testset "queries where the tiles underflow, and where the evidence is impossible" begin
    c = underflowing_circuit()
    X = zeros(Int32, 4, 70)
    X[3, 2:2:end] .= 1  # the other state, without an underflow
    mask = zeros(Bool, 4, 70)
    mask[4, :] .= true
    q = Masked(X, mask)
    marginals = posterior_marginals(c, q)
    @test marginals[:, 4, 1] ≈ [0.25, 0.75]
    @test marginals[:, 4, 2] ≈ [0.5, 0.5]
    rows = sample(c, q, 1000)
    @test abs(sum(rows[4, :, 1]) - 750) < 60
    @test abs(sum(rows[4, :, 2]) - 500) < 60
    @test mpe(c, q)[4, 1:2] == [1, 0]
    @test all(isapprox.(flows(c, X, ones(Int, 70))[1][c.heads], 70; rtol=1e-6))
    X[1, 67] = 1
    X[3, 67] = 1
    for query in (() -> posterior_marginals(c, q), () -> sample(c, q, 2), () -> mpe(c, q))
        @test occursin("X: row 66: the evidence has probability 0 under head 0", message_of(query))
    end
    @test all(isapprox.(flows(c, X, ones(Int, 70))[1][c.heads], 69; rtol=1e-6))  # an impossible sample has no flow
end

@testset "the same samples for any number of threads and pieces" begin
    rng = MersenneTwister(28)
    c = hclt([0, 1, 2, 2]; latents=5, categories=4, heads=2, seed=1)
    X, mask, head_of = rand(rng, Int32(0):Int32(3), 4, 300), Matrix{Bool}(rand(rng, 4, 300) .< 0.6), rand(rng, 1:2, 300)
    whole = sample(c, Masked(X, mask), 5; head_of=head_of, seed=9)
    job = LVDJuice.SampleJob(Plan(c), Masked(X, mask), head_of, zeros(UInt8, 4, 5, 300); seed=9)
    resize!(job.walks, 1)
    resize!(job.workspaces, 1)
    while advance!(job, 0.0) < 1500 end
    @test job.out == whole
    # Few samples look their categories up, many in a table: the same ones.
    @test sample(c, Masked(X[:, 1:1], mask[:, 1:1]), 1; head_of=head_of[1:1], seed=9)[:, 1, 1] == whole[:, 1, 1]
    @test sample(c, Masked(X, mask), 0) == zeros(Int32, 4, 0, 300)
    # One draw each of many: more shares of work than doublings of their size would fit an integer.
    many = sample(c, Masked(repeat(X, 1, 20), repeat(mask, 1, 20)), 1; head_of=repeat(head_of, 20), seed=9)
    @test many[:, 1, 1:300] == whole[:, 1, :]
end

@testset "expected counts of two halves, added, give the whole's EM step" begin
    rng = MersenneTwister(29)
    for trial in 1:10
        c, X, _, head_of, _, _ = random_query(rng; N=101)
        weights = rand(rng, Float32, 101)
        whole = Circuit(c.num_vars, arrays_of(c)...)
        counts = LVDJuice.ExpectedCounts(c)
        for part in (1:40, 41:101)
            job = LVDJuice.FlowJob(Plan(c), X[:, part], head_of[part]; weights=weights[part])
            while advance!(job, 0.0) < length(part) end
            counts.weight .+= job.counts.weight
            counts.leaf .+= job.counts.leaf
        end
        LVDJuice.apply!(engine(c), counts, 0.7, 0.1)
        finish!(EMJob(whole, X, head_of; weights=weights, epochs=1, batch_size=101, step_size=(0.7, 0.7)))
        @test maximum(abs.(c.weight .- whole.weight)) < 1e-6
        @test maximum(abs.(c.leaf .- whole.leaf)) < 1e-6
    end
end

@testset "full-batch EM on random circuits never lowers the likelihood" begin
    rng = MersenneTwister(30)
    for trial in 1:10
        c, X, _, head_of, Z, P = random_query(rng; N=70)
        keep = possible(X, falses(size(X)), head_of, Z, P)
        isempty(keep) && continue
        steps = [one_step(c, X[:, keep], head_of[keep]; step=1.0, pseudocount=0.0) for _ in 1:8]
        @test all(diff(steps) .> -1e-5)
    end
end

@testset "whole steps leave probabilities: none negative, and a sum of 1" begin
    rng = MersenneTwister(31)
    c = hclt([0, 1, 1, 2]; latents=20, categories=5)  # units in SIMD lanes, and some beyond them
    X = rand(rng, 0:2, 4, 41)  # categories 3 and 4 are never seen: all of their probability goes
    for _ in 1:4
        one_step(c, X, ones(Int, 41); step=1.0, pseudocount=0.0)
        @test minimum(c.weight) >= 0 && minimum(c.leaf) >= 0
    end
    @test isapprox(sum(exp.(log_likelihood(c, assignments(4, 5)))), 1; atol=1e-4)
end

@testset "a head that does not cover a variable has nothing to say of it" begin
    b = LVDJuice.Builder(2)
    inputs = LVDJuice.add_inputs!(b, 1, Float32[0.25 0.75])
    c = Circuit(b, [LVDJuice.add_sum!(b, inputs, [1.0])])
    q = Masked(zeros(Int32, 2, 1), fill(true, 2, 1))
    for query in (() -> posterior_marginals(c, q), () -> sample(c, q, 2), () -> sample(c, 2), () -> mpe(c, q))
        @test occursin("head 0 does not cover variable 1", message_of(query))
    end
    q.mask[2] = false
    @test posterior_marginals(c, q)[:, 1, 1] ≈ [0.25, 0.75]
end

@testset "soft evidence for what a binomial's table has lost" begin
    # A mixture of two binomials over 2000 trials, each beside a categorical. Evidence for 60 and 61 successes, or for 2000 alone:
    # of probabilities around 1e-65 and 1e-6000, which no table in single precision has.
    categories, seen = 2001, (0.2f0, 0.5f0, 0.3f0)
    table = zeros(Float32, 2, categories)
    table[:, 1:3] = Float32[0.5 0.25 0.25; 0.125 0.25 0.625]
    b = LVDJuice.Builder(2)
    tails = LVDJuice.add_binomials!(b, 1, categories - 1, Float32[0.001, 0.0011])
    others = LVDJuice.add_inputs!(b, 2, table)
    c = LVDJuice.Circuit(b, [LVDJuice.add_sum!(b, [LVDJuice.add_product!(b, (tails[k], others[k])) for k in 1:2], Float32[0.9, 0.1])])
    for allowed in ([60, 61], [2000])
        scores = fill(-Inf32, categories, 2, 1)
        scores[allowed .+ 1, 1, 1] .= 0
        scores[1:3, 2, 1] .= log.(seen)
        evidence() = SoftEvidence(copy(scores))
        terms = [log(Float64(c.weight[end - 2 + k])) + LVDJuice.log_binomial(2000, x, c.success[tails[k]]) + log(table[k, y] * seen[y])
                 for k in 1:2, x in allowed, y in 1:3]
        p = exp.(terms .- maximum(terms))
        @test isapprox(log_likelihood(c, evidence())[1], maximum(terms) + log(sum(p)); rtol=1e-6)
        p ./= sum(p)
        marginals = posterior_marginals(c, evidence())
        @test isapprox(marginals[allowed .+ 1, 1, 1], vec(sum(p, dims=(1, 3))); rtol=1e-4)
        @test isapprox(marginals[1:3, 2, 1], vec(sum(p, dims=(1, 2))); rtol=1e-4)
        @test sum(marginals) ≈ 2
        n = 4000
        draws = sample(c, evidence(), n; seed=1)[:, :, 1]
        @test sort(unique(draws[1, :])) == allowed
        for (j, x) in enumerate(allowed), y in 1:3
            expected = n * sum(p[:, j, y])
            @test abs(count((draws[1, :] .== x) .& (draws[2, :] .== y - 1)) - expected) <= 5 * sqrt(expected) + 1
        end
        _, j, y = Tuple(argmax(p))
        @test mpe(c, evidence())[:, 1] == [allowed[j], y - 1]
        # The flows of the categories, from which EM learns; nothing may be pruned without making the sample less likely.
        job = LVDJuice.FlowJob(Plan(c; soft=true), evidence(), [1])
        advance!(job)
        found = [job.counts.leaf[c.param_start[u] + x * c.param_stride[u]] for u in tails, x in allowed]
        @test isapprox(found, dropdims(sum(p, dims=3), dims=3); rtol=1e-3, atol=1e-6)
        @test num_edges(prune(c, evidence(), [1]; min_flow=0)) == num_edges(c)
    end
end

@testset "marginals of a binomial's tail" begin
    b = LVDJuice.Builder(1)
    c = LVDJuice.Circuit(b, LVDJuice.add_binomials!(b, 1, 120, Float32[0.01]))
    marginals = posterior_marginals(c, Masked(zeros(Int32, 1, 1), fill(true, 1, 1)))[:, 1, 1]
    @test isapprox(log.(marginals), [LVDJuice.log_binomial(120, x, 0.01f0) for x in 0:120]; rtol=1e-5)
    @test 0 < marginals[end] < 1e-200
end

@testset "posterior marginals of a large circuit, whose ways down are gone in parts" begin
    c = hclt([0, 1, 1, 2, 2, 3]; latents=480, categories=3, heads=2, seed=5)
    @test num_edges(c) > LVDJuice.LARGE && length(LVDJuice.parts_of(Plan(c))) > 1
    rng = MersenneTwister(71)
    X, mask = rand(rng, 0:2, 6, 70), Array(rand(rng, 6, 70) .< 0.5)
    found = posterior_marginals(c, Masked(X, mask); head_of=fill(2, 70))
    known = exp.(log_likelihood(c, Masked(X, mask); heads=2:2)[1, :])
    for i in 1:6, k in 0:2
        with, shown = copy(X), copy(mask)
        with[i, :] .= k
        shown[i, :] .= false
        p = exp.(log_likelihood(c, Masked(with, shown); heads=2:2)[1, :]) ./ known
        @test found[k + 1, i, :] ≈ ifelse.(mask[i, :], p, X[i, :] .== k) rtol = 1e-4
    end
end
