# Growing, against its rule written as a recursion.

"(units, edges) of the grown circuit, by the rule: how many copies each unit gets, and what they are connected to."
function grown_size(c, G, selected)
    copies = Dict{Int,Int}()
    function copies_of(u)
        get!(copies, u) do
            if u in selected
                2
            elseif c.kind[u] == LVDJuice.PRODUCT
                maximum(copies_of(v) for v in LVDJuice.children(c, u))
            else
                u in G ? 2 : 1
            end
        end
    end
    units = sum(copies_of(u) for u in eachindex(c.kind))
    edges = sum(Int[copies_of(u) * (c.kind[u] == LVDJuice.PRODUCT ? 1 : copies_of(v))
                    for u in eachindex(c.kind) for v in LVDJuice.children(c, u)])
    return units, edges
end

"The units below (and with) some units."
function below(c, units)
    found = Set{Int}(units)
    for u in reverse(eachindex(c.kind))
        u in found && union!(found, LVDJuice.children(c, u))
    end
    return found
end

"Flows of all units over the samples of the selected heads, by the definition."
function selected_flows(c, X, head_of, weights, select)
    flow = zeros(length(c.kind))
    for n in axes(X, 2)
        values, head = reference_values(c, X[:, n]), c.heads[head_of[n]]
        head_of[n] in select && values[head] > 0 && (flow .+= weights[n] .* reference_flows(c, values, head)[1])
    end
    return flow
end

"Heads that are inputs, products, inner units, or the same unit twice, as well as the circuit's own."
function with_other_heads(rng, c)
    extra = rand(rng, 1:length(c.kind), rand(rng, 0:3))
    values = LVDJuice.circuit_arrays(c)[1:end - 2]
    return Circuit(values..., vcat(c.heads, extra, rand(rng, Bool) ? c.heads[1:1] : Int32[]))
end

@testset "grow random circuits without noise" begin
    rng = MersenneTwister(60)
    for trial in 1:100
        c, X, _, _, Z, _ = random_query(rng)
        c = with_other_heads(rng, c)
        heads = length(c.heads)
        head_of, weights, before = rand(rng, 1:heads, size(X, 2)), rand(rng, Float32, size(X, 2)) .+ 0.1f0, arrays_of(c)
        select = shuffle(rng, 1:heads)[1:rand(rng, 1:heads)]
        selected = c.heads[select]
        flow = selected_flows(c, X, head_of, weights, select)
        level = level_between(rng, flow)
        for (threshold, G) in ((0, below(c, selected)), (max(level, 1), findall(>=(max(level, 1)), flow)), (1e9, Int[]))
            grown = grow(c, X, head_of; select=select, threshold=threshold, noise=0, weights=weights)
            threshold == 1 && level < 1 && any(f -> abs(f - 1) < 1e-4, flow) && continue  # a matter of rounding
            @test (LVDJuice.num_units(grown), LVDJuice.num_edges(grown)) == grown_size(c, G, selected)
            @test length(grown.heads) == heads + length(select)
            origin = log_likelihood(c, Z)[vcat(1:heads, select), :]
            @test all(isapprox.(exp.(log_likelihood(grown, Z)), exp.(origin); rtol=1e-5, atol=1e-12))
            @test Set(grown.leaf) == Set(c.leaf)
        end
        @test arrays_of(c) == before
    end
end

@testset "a threshold between 0 and 1 is a share of the selected heads' samples" begin
    rng = MersenneTwister(61)
    c = hclt([0, 1, 1]; latents=5, categories=3, heads=3, seed=1, perturbation=0.9)
    X, head_of = rand(rng, UInt8(0):UInt8(2), 3, 400), rand(rng, 1:3, 400)
    number = count(h -> h in (1, 3), head_of)
    for share in (0.1, 0.2, 0.3)
        one = grow(c, X, head_of; select=[3, 1], threshold=share, seed=5)
        @test arrays_of(one) == arrays_of(grow(c, X, head_of; select=[3, 1], threshold=share * number, seed=5))
        @test c.kind != one.kind
    end
    # No sample of the selected heads: nothing has flow, and the head alone must be copied.
    alone = fill(1, 400)
    @test LVDJuice.num_units(grow(c, X, alone; select=[2], threshold=0)) == grown_size(c, below(c, c.heads[2]), c.heads[[2]])[1]
    @test LVDJuice.num_units(grow(c, X, alone; select=[2], threshold=1)) == length(c.kind) + 1
end

@testset "which copy gets which weight" begin
    b = LVDJuice.Builder(1)
    inputs = LVDJuice.add_inputs!(b, 1, Float32[0.9 0.1; 0.3 0.7])
    inner = LVDJuice.add_sum!(b, inputs, Float32[0.25, 0.75])
    c = Circuit(b, [LVDJuice.add_sum!(b, [inner], Float32[1]), LVDJuice.add_sum!(b, [inner, inputs[2]], Float32[0.4, 0.6])])
    # G: the first input (1), the inner sum (3), and head 0 (4), which is selected.
    grown = grow(c, [5.0, 0.0, 9.0, 9.0, 0.0], [1]; threshold=5, noise=0)
    @test [Int.(LVDJuice.children(grown, u)) for u in 4:8] == [[1, 2, 3], [1, 2, 3], [4, 5], [4, 5, 2], [4, 5]]
    @test grown.weight ≈ [0.2, 0.75, 0.05, 0.05, 0.75, 0.2, 0.8, 0.2, 0.32, 0.08, 0.6, 0.2, 0.8]
    @test grown.heads == [6, 7, 8]
    @test grown.leaf ≈ [0.9, 0.3, 0.9, 0.1, 0.7, 0.1]
end

"Which categories are possible, under any input."
probable(c) = [LVDJuice.probability(c, u, k) > 0 for u in findall(LVDJuice.has_table, c.kind) for k in 0:c.categories[u] - 1]

@testset "noise" begin
    rng = MersenneTwister(62)
    for trial in 1:15
        c, X, _, head_of, Z, _ = random_query(rng)
        noise, options = rand(rng, (0.1, 0.2, 0.7)), (select=[1], threshold=2)
        still, one = grow(c, X, head_of; options..., noise=0), grow(c, X, head_of; options..., noise=noise, seed=trial)
        Plan(one)
        @test arrays_of(one) == arrays_of(grow(c, X, head_of; options..., noise=noise, seed=trial))
        @test one.child == still.child && one.heads == still.heads
        @test (one.leaf != still.leaf || all(==(0), c.leaf .* (1 .- c.leaf))) && probable(one) == probable(still)
        low, high = max(1 - 2noise, 0.1), 1 + 2noise
        ratio = one.weight ./ still.weight
        @test all(r -> low / high * 0.999 <= r <= high / low * 1.001, ratio)
        @test all(isapprox.(sum(exp.(log_likelihood(one, Z)); dims=2), 1; rtol=1e-4))
        other = grow(c, X, head_of; options..., noise=noise, seed=trial + 1)
        @test other.weight != one.weight || all(==(1), one.weight)
    end
    # Its distribution: 1 with the given deviation, cut off at two of them. (Weights that many are scaled by almost 1.)
    c = hclt([0]; latents=20_000, categories=2, perturbation=0)
    factor = grow(c, zeros(length(c.kind)), [1]; threshold=1, noise=0.1).weight[1:20_000] .* 20_000
    @test abs(sum(factor) / 20_000 - 1) < 1e-3
    spread = sqrt(sum((factor .- 1) .^ 2) / 20_000)
    @test abs(spread - 0.1 * sqrt(0.9205)) < 0.002  # E min(z^2, 4) = 0.9205 for a normal z
    @test isapprox(maximum(factor) / minimum(factor), 1.2 / 0.8; rtol=1e-4)
    @test 0.018 < count(>(0.9999 * maximum(factor)), factor) / 20_000 < 0.028  # 0.0228 of normal z are above 2
end

@testset "grown circuits stay in order for the plan" begin
    rng = MersenneTwister(63)
    for c in (hclt([0, 1, 1, 2]; latents=18, categories=4, heads=2, seed=3),
              rat_spn(num_vars=8, depth=2, replicas=3, num_sums=3, num_inputs=4, num_cats=3, heads=2, seed=2))
        grown = Plan(grow(c, rand(rng, length(c.kind)), [2, 1]; threshold=0.3))
        @test length(grown.groups) == length(Plan(c).groups)
        @test all(LVDJuice.isdense(b) for g in grown.groups for b in g.blocks)
        again = Plan(grow(grown.circuit, rand(rng, length(grown.circuit.kind)), [3]; threshold=0.5))
        @test length(again.groups) == length(grown.groups)
        @test all(LVDJuice.isdense(b) for g in again.groups for b in g.blocks)
    end
    c = hclt([0, 1, 1, 2]; latents=18, categories=4, seed=3)
    whole = Plan(grow(c, zeros(length(c.kind)), [1]; threshold=0))
    @test count(at -> at.shares_value, whole.columns) == count(at -> at.shares_value, Plan(c).columns)
end

@testset "prune and grow in turn" begin
    rng = MersenneTwister(64)
    c = hclt([0, 1, 1, 2]; latents=6, categories=4, seed=3)
    X, head_of = rand(rng, UInt8(0):UInt8(3), 4, 300), ones(Int, 300)
    for round in 1:3
        finish!(EMJob(c, X, head_of; epochs=2))
        c = prune(c, X, head_of; keep=0.7)
        c = grow(c, X, head_of; select=[round], threshold=0.1, seed=round)
        head_of[head_of .== round] .= rand(rng, [round, round + 1], count(==(round), head_of))
    end
    @test length(c.heads) == 4
    everything = assignments(4, 4)
    @test all(isapprox.(sum(exp.(log_likelihood(c, everything)); dims=2), 1; rtol=1e-4))
end

@testset "grow says what is wrong" begin
    c = hclt([0, 1]; latents=2, categories=2, heads=2)
    X, head_of = zeros(Int32, 2, 3), [1, 2, 1]
    fine = (select=[1], threshold=1)
    for (message, change) in (("select: found no head", (select=Int[],)), ("select: found a head twice", (select=[1, 1],)),
                              ("select: found (2, 2), the circuit has heads 0..1", (select=[3],)),
                              ("threshold = -1", (threshold=-1,)), ("threshold = NaN", (threshold=NaN,)),
                              ("noise = -0.1", (noise=-0.1,)), ("noise = Inf", (noise=Inf,)))
        @test occursin(message, message_of(() -> grow(c, X, head_of; merge(fine, change)...)))
    end
    @test occursin("2 entries for 10 units", message_of(() -> grow(c, [1.0, 2.0], [1]; threshold=1)))
end
