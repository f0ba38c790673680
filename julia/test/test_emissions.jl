# Shapes under offsets against sums over all that is hidden, one by one.

using LVDJuice: Emissions, allowed_values, certain_head_values!, emission_scores!, emission_shares!, limit_inputs!, num_channels, num_states

"Random shapes over 2 pixels of patches with `channels` channels and C = 8 values, under random tables."
function random_emissions(channels; S=3, steps=fill(2, channels), heads=[2, 3], seed=1)
    rng = MersenneTwister(seed)
    shapes = [[engine(hclt([0, 1]; latents=3, categories=8, heads=R, seed=10k + c)) for c in 1:channels] for (k, R) in enumerate(heads)]
    shares(sizes...) = (x = rand(rng, Float32, sizes...) .+ 0.05f0; x ./ sum(x, dims=2))
    return Emissions(shapes, steps, shares(S, sum(heads)), [shares(S, 8 ÷ step) for step in steps])
end

"p(j, d_1, ... | h) p(x known | j, d), (joins, offsets, ..., states), of one patch."
function all_terms(em, x, mask)
    V, C = length(x), num_channels(em)
    D = [size(shift, 2) for shift in em.shifts]
    terms = zeros(size(em.join, 2), D..., num_states(em))
    for (k, own) in enumerate(em.joins), d in Iterators.product(map(n -> 0:n - 1, D)...)
        p = ones(length(own))
        for c in 1:C
            v = c:C:V
            row = reshape([mod(x[i] - em.steps[c] * d[c], 8) for i in v], :, 1)
            p .*= exp.(vec(log_likelihood(em.shapes[k][c], Masked(row, Array(reshape(mask[v], :, 1))))))
        end
        for h in 1:num_states(em)
            shift = prod(em.shifts[c][h, d[c] + 1] for c in 1:C)
            terms[own, (d .+ 1)..., h] = p .* em.join[h, own] .* shift
        end
    end
    return terms
end

@testset "Emissions" begin
    @testset "$channels channels, steps $steps" for (channels, steps) in ((1, [2]), (2, [1, 4]), (3, [2, 8, 4]))
        em = random_emissions(channels; steps=steps)
        rng, V, N = MersenneTwister(2), 2channels, 12
        patches = rand(rng, UInt8.(0:7), V, 2, N)
        mask = Array(rand(rng, V, 2, N) .< 0.3)
        mask[:, 1, 1] .= true
        mask[1:channels:end, 2, 1] .= true  # a whole channel
        mask[:, :, 2] .= false
        for hidden in (nothing, mask)
            scores = fill(NaN32, 3, 2, N)
            emission_scores!(scores, em, patches, hidden)
            for n in 1:N, i in 1:2
                terms = all_terms(em, patches[:, i, n], hidden === nothing ? fill(false, V) : mask[:, i, n])
                wanted = log.(vec(sum(terms, dims=1:channels + 1)))
                @test scores[:, i, n] ≈ wanted rtol = 1e-5 atol = 1e-6
            end
        end
        @testset "shares" for hidden in (nothing, mask[:, 1, :])
            weights = rand(rng, Float32, 3, N)
            weights[2, 3] = 0
            joins = fill(NaN32, 5, N)
            offsets = [fill(NaN32, 5, size(shift, 2), N) for shift in em.shifts]
            emission_shares!(joins, offsets, em, patches[:, 1, :], hidden, weights)
            for n in 1:N
                terms = all_terms(em, patches[:, 1, n], hidden === nothing ? fill(false, V) : hidden[:, n])
                terms .*= reshape(weights[:, n] ./ vec(sum(terms, dims=1:channels + 1)), ntuple(_ -> 1, channels + 1)..., 3)
                @test joins[:, n] ≈ vec(sum(terms, dims=2:channels + 2)) rtol = 1e-5
                for c in 1:channels
                    rest = Tuple(i for i in 2:channels + 2 if i != c + 1)
                    @test offsets[c][:, :, n] ≈ dropdims(sum(terms, dims=rest), dims=rest) rtol = 1e-5 atol = 1e-7
                end
            end
            alone = similar(joins)
            emission_shares!(alone, (), em, patches[:, 1, :], hidden, weights)
            @test alone == joins
        end
    end

    @testset "windows" begin
        em = random_emissions(2)
        allowed = fill(true, 8, 2)
        allowed[4:6, 1] .= false
        for own in em.shapes, e in own
            limit_inputs!(e.plan.circuit, allowed)
            @test allowed_values(e.plan.circuit) == allowed
        end
        narrow = Emissions(em.shapes, em.steps, em.join, em.shifts)
        patches = rand(MersenneTwister(3), UInt8.(0:7), 4, 1, 20)
        scores, full = zeros(Float32, 3, 1, 20), zeros(Float32, 3, 1, 20)
        emission_scores!(scores, narrow, patches)
        emission_scores!(full, em, patches)  # all offsets are tried, those under which a value is impossible too
        @test scores ≈ full rtol = 1e-5
        @test scores[:, 1, 1] ≈ log.(vec(sum(all_terms(em, patches[:, 1, 1], fill(false, 4)), dims=1:3))) rtol = 1e-5
    end

    @testset "impossible and tried" begin
        em = random_emissions(1; steps=[8])
        allowed = fill(true, 8, 2)
        allowed[1, :] .= false
        for e in first.(em.shapes)
            limit_inputs!(e.plan.circuit, allowed)
        end
        em = Emissions(em.shapes, em.steps, em.join, em.shifts)
        patches = reshape(UInt8[0, 1, 2, 3], 2, 2, 1)
        scores = zeros(Float32, 3, 2, 1)
        emission_scores!(scores, em, patches)
        @test all(scores[:, 1, 1] .== -Inf32) && all(isfinite, scores[:, 2, 1])
        joins = ones(Float32, 5, 2)
        emission_shares!(joins, (), em, patches[:, :, 1], nothing, ones(Float32, 3, 2))
        @test joins[:, 1] == zeros(5) && sum(joins[:, 2]) ≈ 3
        one, other = similar(scores), similar(scores)
        emission_scores!(one, em, patches, nothing, zeros(UInt16, 1, 2, 1))
        emission_scores!(other, em, patches, nothing, ones(UInt16, 1, 2, 1))
        @test log.(exp.(one[:, 2, 1]) .+ exp.(other[:, 2, 1])) ≈ scores[:, 2, 1] rtol = 1e-5
    end

    @testset "written out as a circuit" begin
        em = random_emissions(3; steps=[2, 8, 4])
        prior = hclt([0, 1]; latents=2, categories=3, seed=6)
        circuits = hcat([[e.plan.circuit for e in own] for own in em.shapes]...)  # (channels, shapes)
        variables = [1 7; 2 8; 3 9; 4 10; 5 11; 6 12]
        whole = offset_circuit(prior, circuits, em.steps, em.join, em.shifts, variables)
        X = rand(MersenneTwister(7), UInt8.(0:7), 12, 50)
        scores = zeros(Float32, 3, 2, 50)
        emission_scores!(scores, em, reshape(X, 6, 2, 50))
        @test log_likelihood(whole, X) ≈ log_likelihood(prior, SoftEvidence(scores)) rtol = 1e-5
        @test_throws ArgumentError offset_circuit(prior, circuits, [2, 8, 2], em.join, em.shifts, variables)
    end

    @testset "offsets that fit best, but are impossible under a state, take nothing from the others" begin
        V, S = 40, 2
        e = engine(fully_factorized(num_vars=V, num_cats=8))
        p = fill(1f-30, 8)
        p[1] = 1 - sum(p[2:end])
        for u in 1:num_units(e.plan.circuit)
            LVDJuice.isinput(e.plan.circuit.kind[u]) && (LVDJuice.probabilities(e.plan.circuit, u) .= p)
        end
        shift = zeros(Float32, S, 8)
        shift[1, 1], shift[2, 2:3] = 1, [0.25, 0.75]
        em = Emissions([[e]], [1], ones(Float32, S, 1), [shift])
        scores = zeros(Float32, S, 1, 1)
        emission_scores!(scores, em, zeros(UInt8, V, 1, 1))
        @test scores[:, 1, 1] ≈ [0, V * log(1f-30)] rtol = 1e-5  # 2763 nats below
        joins, offsets = zeros(Float32, 1, 2), zeros(Float32, 1, 8, 2)
        emission_shares!(joins, [offsets], em, zeros(UInt8, V, 2), nothing, Float32[1 0; 0 1])
        @test joins ≈ [1 1]
        @test offsets[1, :, :] ≈ [1 0; 0 0.25; 0 0.75; zeros(5, 2)]
    end

    @testset "values of heads are likelihoods" begin
        e = engine(hclt([0, 1, 1, 2]; latents=4, categories=5, heads=3, seed=4))
        X = rand(MersenneTwister(5), 0:4, 4, 100)
        values, scale = zeros(Float32, 3, 100), zeros(100)
        certain_head_values!(values, scale, e, X)
        @test log.(values) .+ scale' ≈ log_likelihood(e, X) rtol = 1e-6
    end

    @test_throws ArgumentError random_emissions(1; steps=[3])
end
