# A field of states and offsets against sums over all of its values, one by one.

using LVDJuice: Field, FieldCounts, FieldEMJob, MessageRoom, SplitMix, Spot, apply!, channel_rooms, circuit, combs, field_beliefs, field_log_likelihood,
                field_posteriors!, field_scores!, field_step!, free_spot, limit_free!, num_channels, num_states, sample_field!, table_step!,
                upward

"A random field of 2 x 2 positions, S states in Q groups, D offsets of each channel."
function random_field(group, D; seed=1, rows=2, columns=2)
    rng = MersenneTwister(seed)
    S, Q = length(group), maximum(group)
    shares(sizes...; dims) = (x = rand(rng, sizes...) .+ 0.05; x ./ sum(x, dims=dims))
    return Field(rows, columns, group, vec(shares(S; dims=1)), [shares(S, d; dims=2) for d in D], [shares(S, S; dims=2) for _ in 1:2],
                 [[shares(d, d, Q, Q; dims=2) for d in D] for _ in 1:2])
end

"All values of h = (s, d), their probabilities under a comb, and of each edge (i, direction) the values of both ends."
function all_values(f, (parent, direction))
    D, P = [size(o, 2) for o in f.first_offsets], f.rows * f.columns
    own = vec([(s, d) for s in eachindex(f.group), d in Iterators.product(map(n -> 1:n, D)...)])
    return [(h, prod(1:P) do i
        s, d = h[i]
        i == 1 && return f.first[s] * prod(f.first_offsets[c][s, d[c]] for c in eachindex(D))
        s0, d0 = h[parent[i]]
        a = direction[i]
        f.next[a][s0, s] * prod(f.next_offsets[a][c][d0[c], d[c], f.group[s0], f.group[s]] for c in eachindex(D))
    end) for h in Iterators.product(fill(own, P)...)]
end

"p(x_i | s, d) as a spot has it."
function says(spot, s, d)
    isempty(spot.values) && return 1.0
    index = [findfirst(==(d[c]), spot.places[c]) for c in eachindex(d)]
    any(isnothing, index) && return 0.0
    return spot.values[s, LinearIndices(Tuple(length.(spot.places)))[index...]] * exp(spot.scale)
end

function random_spots(f, known; seed=2)
    rng = MersenneTwister(seed)
    D = [size(o, 2) for o in f.first_offsets]
    return map(1:f.rows * f.columns) do i
        i in known || return free_spot(f)
        places = [sort(randperm(rng, d)[1:max(1, d - 1)]) for d in D]
        Spot(places, rand(rng, length(f.group), prod(length, places)), randn(rng))
    end
end

@testset "a field of states and offsets, against enumeration" begin
    sizes = (([1, 1, 2], [3]), ([1, 2], [2, 2]), ([1], [2, 1, 2]))
    @testset "$(length(D)) channels, $group, known $known" for (group, D) in sizes, known in (1:4, [1, 4], [2, 3], Int[])
        f = random_field(group, D)
        spots = random_spots(f, known)
        values = [all_values(f, comb) for comb in combs(f)]
        weighed = [[(h, p * prod(says(spots[i], h[i]...) for i in 1:4)) for (h, p) in each] for each in values]
        totals = [sum(last, each) for each in weighed]
        @test all(each -> sum(last, each) ≈ 1, values)
        @test [upward(MessageRoom(f), f, comb, spots).total for comb in combs(f)] ≈ log.(totals) atol = 1e-12
        @test field_log_likelihood(f, spots) ≈ log(sum(totals) / 2) atol = 1e-12
        wanted, wanted_counts = [zeros(length(group), prod(length, spot.places)) for spot in spots], FieldCounts(f)
        for (each, (parent, direction)) in zip(weighed, combs(f)), (h, p) in each
            p /= sum(totals)
            p > 0 || continue
            for i in 1:4
                s, d = h[i]
                index = [findfirst(==(d[c]), spots[i].places[c]) for c in eachindex(d)]
                wanted[i][s, LinearIndices(Tuple(length.(spots[i].places)))[index...]] += p
                i == 1 && (wanted_counts.first[s] += p; foreach(c -> wanted_counts.first_offsets[c][s, d[c]] += p, eachindex(d)))
                i == 1 && continue
                (s0, d0), a = h[parent[i]], direction[i]
                wanted_counts.next[a][s0, s] += p
                foreach(c -> wanted_counts.next_offsets[a][c][d0[c], d[c], group[s0], group[s]] += p, eachindex(d))
            end
        end
        if known == 1:4
            posteriors, counts = zero.(wanted), FieldCounts(f)
            @test field_posteriors!(posteriors, counts, f, spots) ≈ log(sum(totals) / 2) atol = 1e-12
            @test all(posteriors .≈ wanted)
            @test counts.first ≈ wanted_counts.first && all(counts.first_offsets .≈ wanted_counts.first_offsets)
            @test all(counts.next .≈ wanted_counts.next)
            @test all(all(a .≈ b) for (a, b) in zip(counts.next_offsets, wanted_counts.next_offsets))
        end
        total, marginals, joint = field_beliefs(f, spots)
        @test total ≈ log(sum(totals) / 2) atol = 1e-12
        @test all(isempty(own) || own ≈ wanted for (own, wanted) in zip(joint, wanted))
        for c in eachindex(D), i in 1:4
            alone = zeros(length(group), D[c])
            for (box, index) in enumerate(CartesianIndices(Tuple(length.(spots[i].places))))
                alone[:, spots[i].places[c][index[c]]] .+= wanted[i][:, box]
            end
            @test marginals[c][:, :, i] ≈ alone
        end
        seen, N = zero.(wanted), 4000
        states, offsets = zeros(Int, 4, N), zeros(Int, length(D), 4, N)
        sample_field!(states, offsets, f, spots, SplitMix(3))
        for n in 1:N, i in 1:4
            index = [findfirst(==(offsets[c, i, n]), spots[i].places[c]) for c in eachindex(D)]
            seen[i][states[i, n], LinearIndices(Tuple(length.(spots[i].places)))[index...]] += 1 / N
        end
        @test maximum(maximum(abs.(a .- b)) for (a, b) in zip(seen, wanted)) < 0.04
    end
    @testset "an impossible image counts for nothing" begin
        f = random_field([1, 2], [2, 2])
        spots = [Spot([[1], [2]], zeros(2, 1), 0.0); random_spots(f, 2:4)[2:4]]
        posteriors, counts = [ones(2, prod(length, spot.places)) for spot in spots], FieldCounts(f)
        @test field_posteriors!(posteriors, counts, f, spots) == -Inf
        @test all(iszero, posteriors[2]) && all(iszero, counts.first) && all(iszero, counts.next[1])
        @test field_beliefs(f, spots)[1] == -Inf
    end
    @testset "what is unknown has the offsets that its channel leaves likely" begin
        f = random_field([1], [24, 5]; rows=1, columns=3)
        near = [abs(d - d2) <= 1 ? 1.0 : 1e-9 for d in 1:24, d2 in 1:24]
        near ./= sum(near, dims=2)
        f.next_offsets[1][1][:, :, 1, 1] = near
        known(offset) = Spot([[offset], [2, 4]], [0.3 0.4], 0.0)
        free = free_spot(f)
        between, before, after = [known(10), free, known(11)], [free, free, known(11)], [known(10), free, free]
        for spots in (between, before, after)
            limited = copy(spots)
            limit_free!(limited, channel_rooms(f))
            @test all(limited[i] === spots[i] for i in 1:3 if spots[i] !== free)
            @test field_log_likelihood(f, limited) ≈ field_log_likelihood(f, spots) atol = 1e-6
            spots === between && @test limited[2].places == [10:11, 1:5]
            spots === before && @test [spot.places[1] for spot in limited[1:2]] == [9:13, 10:12]
        end
        nothing_known = fill(free, 3)
        limit_free!(nothing_known, channel_rooms(f))
        @test all(spot -> spot === free, nothing_known)
    end
    @testset "EM raises the likelihood" begin
        f = random_field([1, 1, 2], [3, 2]; rows=2, columns=3)
        images, totals = [random_spots(f, 1:6; seed=10n) for n in 1:5], Float64[]
        for _ in 1:6
            counts = FieldCounts(f)
            for_each = [[zeros(3, prod(length, spot.places)) for spot in spots] for spots in images]
            push!(totals, sum(field_posteriors!(own, counts, f, spots) for (own, spots) in zip(for_each, images)))
            field_step!(f, counts, 1.0, 0.0)
        end
        @test all(diff(totals) .> -1e-9) && totals[end] > totals[1] + 0.1
    end
end

"p(j | s) prod_c p(x_c - step d_c | j), (joins, offsets, ..., states), of one patch under the shapes `tried`, from 0."
function join_terms(em, x, mask=fill(false, length(x)), tried=0:length(em.shapes) - 1)
    C, S, D = num_channels(em), num_states(em), [em.categories ÷ step for step in em.steps]
    terms = zeros(size(em.join, 2), D..., S)
    for (k, own) in enumerate(em.joins), d in Iterators.product(map(n -> 0:n - 1, D)...)
        k - 1 in tried || continue
        p = ones(length(own))
        for c in 1:C
            v = c:C:length(x)
            row = reshape([mod(x[i] - em.steps[c] * d[c], em.categories) for i in v], :, 1)
            p .*= exp.(vec(log_likelihood(em.shapes[k][c], Masked(row, Array(reshape(mask[v], :, 1))))))
        end
        terms[own, (d .+ 1)..., :] .= p .* permutedims(em.join[:, own])
    end
    return terms
end

function enumerated_spot(terms)
    D = size(terms)[2:end - 1]
    return Spot([collect(1:d) for d in D], permutedims(reshape(sum(terms, dims=1), prod(D), :)), 0.0)
end

@testset "patches below a field, against enumeration" begin
    rng = MersenneTwister(71)
    some = rand(rng, UInt16(0):UInt16(1), 1, 2, 12)
    for (step, pseudocount, own, tried, steps) in ((1.0, 0.0, 0.0, nothing, [4]), (0.3, 0.2, 0.7, nothing, [2, 8]), (0.3, 0.2, 0.7, some, [4, 2]))
        em, C = random_emissions(length(steps); steps=steps), length(steps)
        f = random_field([1, 1, 2], [8 ÷ step for step in steps]; rows=1, columns=2)
        patches = rand(rng, UInt8.(0:7), 2C, 2, 12)
        terms = [join_terms(em, patches[:, i, n], fill(false, 2C), tried === nothing ? (0:1) : tried[:, i, n]) for i in 1:2, n in 1:12]
        spots = enumerated_spot.(terms)
        if tried === nothing
            scores = zeros(12)
            field_scores!(scores, f, em, patches)
            @test scores ≈ [field_log_likelihood(f, spots[:, n]) for n in 1:12] rtol = 1e-6
            mask = rand(rng, size(patches)...) .< 0.4
            mask[:, 1, 1] .= true
            mask[1:C:end, 2, 2] .= true
            known = enumerated_spot.([join_terms(em, patches[:, i, n], mask[:, i, n]) for i in 1:2, n in 1:12])
            field_scores!(scores, f, em, patches, Array(mask))
            @test scores ≈ [field_log_likelihood(f, known[:, n]) for n in 1:12] rtol = 1e-5
        end
        counts, join, total = FieldCounts(f), zeros(size(em.join)), 0.0
        rows = [[(Vector{Int}[], Int[], Float64[]) for _ in 1:C] for _ in em.shapes]
        for n in 1:12
            posteriors = [zeros(size(spot.values)) for spot in spots[:, n]]
            total += field_posteriors!(posteriors, counts, f, spots[:, n])
            for i in 1:2
                ratio = permutedims(posteriors[i] ./ spots[i, n].values)
                t = terms[i, n] .* reshape(ratio, 1, size(terms[i, n])[2:end]...)
                join .+= dropdims(sum(t, dims=2:C + 1), dims=Tuple(2:C + 1))'
                for c in 1:C
                    rest = Tuple(a for a in 2:C + 2 if a != c + 1)
                    shares = dropdims(sum(t, dims=rest), dims=rest)
                    for (k, heads) in enumerate(em.joins), (r, j) in enumerate(heads), d in axes(shares, 2)
                        push!(rows[k][c][1], [mod(x - em.steps[c] * (d - 1), 8) for x in patches[c:C:2C, i, n]])
                        push!(rows[k][c][2], r)
                        push!(rows[k][c][3], shares[j, d])
                    end
                end
            end
        end
        wanted_field, wanted_join = deepcopy(f), copy(em.join)
        field_step!(wanted_field, counts, step, own)
        table_step!(wanted_join, join, step, own)
        wanted = [deepcopy(circuit(e)) for shape in em.shapes for e in shape]
        for (c, (X, heads, weights)) in zip(wanted, Iterators.flatten(rows))
            flowing = LVDJuice.FlowJob(Plan(c), reduce(hcat, X), heads; weights=Float32.(weights))
            advance!(flowing)
            apply!(flowing.engine, flowing.counts, step, pseudocount)
        end
        job = FieldEMJob(f, em, patches; candidates=tried, epochs=1, batch_size=12, step_size=(step, step), pseudocount=pseudocount,
                         prior_pseudocount=own)
        @test advance!(job)[3] ≈ total / 12 rtol = 1e-5
        @test close_to(em.join, wanted_join; rtol=1e-3)
        @test all(close_to(getfield(f, name), getfield(wanted_field, name); rtol=1e-3) for name in (:first,))
        @test all(close_to(a, b; rtol=1e-3) for (a, b) in zip([f.first_offsets; f.next], [wanted_field.first_offsets; wanted_field.next]))
        @test all(close_to(a, b; rtol=1e-3) for a_b in zip(f.next_offsets, wanted_field.next_offsets) for (a, b) in zip(a_b...))
        for (e, c) in zip((e for shape in em.shapes for e in shape), wanted)
            @test close_to(circuit(e).weight, c.weight; rtol=1e-3)
            @test close_to(circuit(e).leaf, c.leaf; rtol=1e-3)
        end
    end
end
