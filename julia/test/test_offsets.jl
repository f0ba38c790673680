# EM on models with offsets against expected counts by enumeration; tied parameters.

using LVDJuice: apply!, circuit, edges, num_channels, num_states, step_of, table_step!, tie!, tied_lines, tied_tree

"Expected counts of all parts of a model on patches (variables, positions, samples), by enumeration; tried: (1, positions, samples) or nothing."
function enumerated_counts(prior, em, patches, tried)
    V, P, N = size(patches)
    C, S = num_channels(em), num_states(em)
    scores, terms = zeros(Float32, S, P, N), Array{Any}(undef, P, N)
    for n in 1:N, i in 1:P
        t = all_terms(em, patches[:, i, n], fill(false, V))
        tried === nothing || (t[[j for (k, own) in enumerate(em.joins) for j in own if k - 1 != tried[1, i, n]], ntuple(_ -> :, C + 1)...] .= 0)
        terms[i, n] = t
        scores[:, i, n] = log.(vec(sum(t, dims=1:C + 1)))
    end
    total = sum(log_likelihood(prior, SoftEvidence(copy(scores))))
    posterior = soft_marginals(prior, scores)
    join, shifts = zeros(size(em.join)), [zeros(size(s)) for s in em.shifts]
    rows = [[(Vector{Int}[], Int[], Float64[]) for _ in 1:C] for _ in em.shapes]
    for n in 1:N, i in 1:P
        t = terms[i, n] .* reshape(posterior[:, i, n] ./ exp.(scores[:, i, n]), ntuple(_ -> 1, C + 1)..., S)
        join .+= dropdims(sum(t, dims=2:C + 1), dims=Tuple(2:C + 1))'
        for c in 1:C
            rest = Tuple(a for a in 1:C + 1 if a != c + 1)
            shifts[c] .+= dropdims(sum(t, dims=rest), dims=rest)'
            shares = dropdims(sum(t, dims=Tuple(a for a in 2:C + 2 if a != c + 1)), dims=Tuple(a for a in 2:C + 2 if a != c + 1))
            for (k, own) in enumerate(em.joins), (r, j) in enumerate(own), d in axes(shares, 2)
                push!(rows[k][c][1], [mod(x - em.steps[c] * (d - 1), 8) for x in patches[c:C:V, i, n]])
                push!(rows[k][c][2], r)
                push!(rows[k][c][3], shares[j, d])
            end
        end
    end
    return total, scores, join, shifts, rows
end

"p(h_i | evidence), by enumeration of two positions."
function soft_marginals(prior, scores)
    S, P, N = size(scores)
    out = zeros(S, P, N)
    for n in 1:N, h in eachcol(assignments(P, S))
        p = exp(log_likelihood(prior, reshape(collect(h), :, 1))[1] + sum(scores[h[i] + 1, i, n] for i in 1:P))
        for i in 1:P
            out[h[i] + 1, i, n] += p
        end
    end
    return out ./ sum(out, dims=1)
end

@testset "a step of EM on a model with offsets, against enumeration" begin
    rng = MersenneTwister(61)
    some = rand(rng, UInt16(0):UInt16(1), 1, 2, 12)
    for (step, pseudocount, own, tried, steps) in ((1.0, 0.0, 0.0, nothing, [4]), (0.3, 0.2, 0.7, nothing, [2, 8]), (0.3, 0.2, 0.7, some, [4, 2]))
        em, prior = random_emissions(length(steps); steps=steps), hclt([0, 1]; latents=2, categories=3, seed=7)
        patches = rand(rng, UInt8.(0:7), 2length(steps), 2, 12)
        total, scores, join, shifts, rows = enumerated_counts(prior, em, patches, tried)
        wanted_prior = deepcopy(prior)
        finish!(EMJob(wanted_prior, SoftEvidence(scores), ones(Int, 12); epochs=1, batch_size=12, step_size=(step, step), pseudocount=own))
        wanted_join, wanted_shifts = copy(em.join), copy.(em.shifts)
        table_step!(wanted_join, join, step, own)
        foreach((s, counts) -> table_step!(s, counts, step, own), wanted_shifts, shifts)
        wanted = [deepcopy(circuit(e)) for shape in em.shapes for e in shape]
        for (c, (X, heads, weights)) in zip(wanted, Iterators.flatten(rows))
            flowing = LVDJuice.FlowJob(Plan(c), reduce(hcat, X), heads; weights=Float32.(weights))
            advance!(flowing)
            apply!(flowing.engine, flowing.counts, step, pseudocount)
        end
        job = OffsetEMJob(prior, em, patches; candidates=tried, epochs=1, batch_size=12, step_size=(step, step), pseudocount=pseudocount,
                          prior_pseudocount=own)
        @test advance!(job)[3] ≈ total / 12 rtol = 1e-6
        @test close_to(em.join, wanted_join; rtol=1e-4)
        @test all(close_to(a, b; rtol=1e-4) for (a, b) in zip(em.shifts, wanted_shifts))
        for (c, e) in zip([prior; [circuit(e) for shape in em.shapes for e in shape]], [wanted_prior; wanted])
            @test close_to(c.weight, e.weight; rtol=2e-4)
            @test close_to(c.leaf, e.leaf; rtol=2e-4)
        end
    end
end

@testset "EM on a model with offsets raises the likelihood, whatever the batches" begin
    em, prior = random_emissions(3; steps=[2, 4, 8]), hclt([0, 1]; latents=2, categories=3, seed=7)
    patches = rand(MersenneTwister(62), UInt8.(0:3), 6, 2, 40)
    job, means = OffsetEMJob(prior, em, patches; epochs=8, batch_size=40, step_size=(1.0, 1.0), pseudocount=0, prior_pseudocount=0), Float64[]
    while job.epoch < 8
        push!(means, advance!(job)[3])
    end
    @test all(diff(means) .> -1e-6) && means[end] > means[1] + 0.1
    steps = OffsetEMJob(prior, em, patches; epochs=2, batch_size=16, step_size=(0.5, 0.1))
    taken = Float64[]
    while steps.epoch < 2
        push!(taken, step_of(steps))
        advance!(steps, -1)  # one batch
    end
    @test length(taken) == 6 && taken[1] == 0.5 && taken[end] ≈ 0.1 && all(diff(taken) .< 0)
    narrow = OffsetEMJob(prior, em, patches; epochs=1, batch_size=16, step_size=(0.1, 0.1))
    @test isfinite(advance!(narrow)[3]) && narrow.epoch == 1
end

@testset "what is impossible in a shape's circuits stays so" begin
    em = random_emissions(1; steps=[2])
    allowed = fill(true, 8, 2)
    allowed[5:end, 1] .= false
    foreach(shape -> limit_inputs!(circuit(shape[1]), allowed), em.shapes)
    em = Emissions(em.shapes, em.steps, em.join, em.shifts)
    finish!(OffsetEMJob(hclt([0, 1]; latents=2, categories=3), em, rand(MersenneTwister(63), UInt8.(0:7), 2, 2, 30); epochs=2))
    @test all(allowed_values(circuit(shape[1])) == allowed for shape in em.shapes)
end

@testset "tied parameters" begin
    counts = tie!(ExpectedCounts([1.0, 2.0, 3.0, 4.0], [1.0]), Ties(Int32[1, 0, 1, 2]))
    @test counts.weight == [4, 2, 4, 4]
    rng = MersenneTwister(64)
    shares(sizes...) = (x = rand(rng, sizes...) .+ 0.1; x ./ sum(x, dims=1))
    root, transitions = vec(shares(3, 1)), shares(3, 3, 2)
    prior, ties = tied_tree([2, 0, 2, 3], [1, 1, 2, 1], root, transitions)
    for h in eachcol(assignments(4, 3))
        p = root[h[2] + 1] * transitions[h[1] + 1, h[2] + 1, 1] * transitions[h[3] + 1, h[2] + 1, 2] * transitions[h[4] + 1, h[3] + 1, 1]
        @test exp(log_likelihood(prior, reshape(collect(h), :, 1))[1]) ≈ p rtol = 1e-5
    end
    @test sort(unique(ties)) == 0:18 && count(==(5), ties) == 2 && count(==(14), ties) == 1
    em = random_emissions(1; steps=[2])
    finish!(OffsetEMJob(prior, em, rand(rng, UInt8.(0:7), 2, 4, 30); ties=Ties(ties), epochs=3))
    for number in 1:18
        @test length(unique(prior.weight[ties .== number])) == 1
    end
    @test_throws ArgumentError OffsetEMJob(prior, em, rand(rng, UInt8.(0:7), 2, 4, 3); ties=Ties(Int32[1]))
end

@testset "lines of kinds, against enumeration" begin
    rng = MersenneTwister(66)
    shares(sizes...) = (x = rand(rng, sizes...) .+ 0.1; x ./ sum(x, dims=1))
    for (lines, S, G) in (([1 3; 2 5; 4 6], 2, 3), ([1 2 3], 3, 2), (reshape([2, 1], 2, 1), 3, 1))
        (L, R), (root, next, starts, transitions) = size(lines), (vec(shares(G, 1)), shares(G, G), shares(S, G), shares(S, S, G))
        prior, ties = tied_lines(lines, root, next, starts, transitions)
        for h in eachcol(assignments(L * R, S))
            p = sum(eachcol(assignments(R, G))) do kinds
                prod(1:R) do r
                    own, k = h[lines[:, r]] .+ 1, kinds[r] + 1
                    (r == 1 ? root[k] : next[k, kinds[r - 1] + 1]) * starts[own[1], k] * prod([transitions[own[i], own[i - 1], k] for i in 2:L])
                end
            end
            @test exp(log_likelihood(prior, reshape(collect(h), :, 1))[1]) ≈ p rtol = 1e-5
        end
        for number in 1:maximum(ties)
            @test length(unique(prior.weight[ties .== number])) <= 1
        end
        @test count(iszero, ties[[e for u in findall(==(LVDJuice.SUM), prior.kind) for e in edges(prior, u)]]) == G
    end
    @test_throws ArgumentError tied_lines([1 2; 3 3], [1.0], ones(1, 1), shares(2, 1), shares(2, 2, 1))
end

@testset "soft evidence of indicators: as of tables that are the identity" begin
    rng = MersenneTwister(65)
    transitions = rand(rng, 5, 5, 1) .+ 0.1
    prior, _ = tied_tree([0, 1, 2], [1, 1, 1], fill(0.2, 5), transitions ./ sum(transitions, dims=1))
    plain = Circuit(prior.num_vars, arrays_of(prior)...)
    plain.kind[plain.kind .== LVDJuice.INDICATOR] .= LVDJuice.CATEGORICAL
    scores = randn(rng, Float32, 5, 3, 100)
    @test log_likelihood(prior, SoftEvidence(copy(scores))) ≈ log_likelihood(plain, SoftEvidence(copy(scores))) rtol = 1e-6
    found = map((prior, plain)) do c
        posterior = zeros(Float32, 5, 3, 100)
        e = engine(c; soft=true)
        LVDJuice.accumulate_posterior!(posterior, e, SoftEvidence(copy(scores)), ones(Int32, 100))
        posterior, LVDJuice.counts!(ExpectedCounts(c), e).weight
    end
    @test found[1][1] ≈ found[2][1] rtol = 1e-5
    @test found[1][2] ≈ found[2][2] rtol = 1e-5
end
