# A field of states and offsets against sums over all of its values, one by one.

using LVDJuice: Field, FieldCounts, MessageRoom, SplitMix, Spot, combs, field_log_likelihoods, field_posteriors!, field_step!, free_spot, sample_field

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
    @testset "$(length(D)) channels, $group, known $known" for (group, D) in (([1, 1, 2], [3]), ([1, 2], [2, 2]), ([1], [2, 1, 2])), known in (1:4, [1, 4], [2, 3], Int[])
        f = random_field(group, D)
        spots = random_spots(f, known)
        values = [all_values(f, comb) for comb in combs(f)]
        weighed = [[(h, p * prod(says(spots[i], h[i]...) for i in 1:4)) for (h, p) in each] for each in values]
        totals = [sum(last, each) for each in weighed]
        @test all(each -> sum(last, each) ≈ 1, values)
        @test field_log_likelihoods(f, spots) ≈ log.(totals) atol = 1e-12
        posteriors, counts = [zeros(length(group), prod(length, spot.places)) for spot in spots], FieldCounts(f)
        @test field_posteriors!(posteriors, counts, f, spots) ≈ log(sum(totals) / 2) atol = 1e-12
        wanted, wanted_counts = zero.(posteriors), FieldCounts(f)
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
        @test all(posteriors .≈ wanted)
        @test counts.first ≈ wanted_counts.first && all(counts.first_offsets .≈ wanted_counts.first_offsets)
        @test all(counts.next .≈ wanted_counts.next)
        @test all(all(a .≈ b) for (a, b) in zip(counts.next_offsets, wanted_counts.next_offsets))
        rng, seen, N = SplitMix(3), zero.(posteriors), 4000
        for _ in 1:N
            states, offsets = sample_field(f, spots, rng)
            for i in 1:4
                index = [findfirst(==(offsets[c, i]), spots[i].places[c]) for c in eachindex(D)]
                seen[i][states[i], LinearIndices(Tuple(length.(spots[i].places)))[index...]] += 1 / N
            end
        end
        @test maximum(maximum(abs.(a .- b)) for (a, b) in zip(seen, posteriors)) < 0.04
    end
    @testset "EM raises the likelihood" begin
        f = random_field([1, 1, 2], [3, 2]; rows=2, columns=3)
        images, totals = [random_spots(f, 1:6; seed=10n) for n in 1:5], Float64[]
        for _ in 1:6
            counts = FieldCounts(f)
            push!(totals, sum(field_posteriors!([zeros(3, prod(length, spot.places)) for spot in spots], counts, f, spots) for spots in images))
            field_step!(f, counts, 1.0, 0.0)
        end
        @test all(diff(totals) .> -1e-9) && totals[end] > totals[1] + 0.1
    end
end
