# Pruning, against the definition evaluated with dictionaries and sets.

"What is left of each sum's edges, by the definition: a dictionary from edges to weights."
function reference_edges(c, flow, least)
    left = Dict{Int,Float64}()
    for u in eachindex(c.kind)
        c.kind[u] == LVDJuice.SUM || continue
        all_edges = LVDJuice.edges(c, u)
        kept = [e for e in all_edges if flow[e] > least]
        isempty(kept) && (kept = [sort(all_edges; by=e -> (flow[e], c.weight[e], -e))[end]])
        total = sum(Float64.(c.weight[kept]))
        for e in kept
            left[e] = c.weight[e] / total
        end
    end
    return left
end

"The values of a pruned circuit's heads, unit by unit."
function pruned_values(c, left, x)
    p = zeros(length(c.kind))
    for u in eachindex(p)
        p[u] = if LVDJuice.isinput(c.kind[u])
            Float64(c.leaf[c.param_start[u] + x[c.variable[u]] * c.param_stride[u]])
        elseif c.kind[u] == LVDJuice.PRODUCT
            prod(p[LVDJuice.child(c, u, e)] for e in LVDJuice.edges(c, u))
        else
            sum(left[e] * p[LVDJuice.child(c, u, e)] for e in LVDJuice.edges(c, u) if haskey(left, e))
        end
    end
    return p[c.heads]
end

"The units that a pruned circuit's heads reach."
function pruned_units(c, left)
    found = Set{Int}()
    function visit(u)
        u in found && return
        push!(found, u)
        for e in LVDJuice.edges(c, u)
            (c.kind[u] == LVDJuice.PRODUCT || haskey(left, e)) && visit(LVDJuice.child(c, u, e))
        end
    end
    foreach(visit, c.heads)
    return found
end

"The flows of all edges of sums, by the definition."
function reference_edge_flows(c, X, head_of, weights)
    flow = zeros(length(c.weight))
    for n in axes(X, 2)
        values, head = reference_values(c, X[:, n]), c.heads[head_of[n]]
        values[head] > 0 && (flow .+= weights[n] .* reference_flows(c, values, head)[2])
    end
    return flow
end

function check_pruned(c, pruned, left, Z)
    units = pruned_units(c, left)
    @test LVDJuice.num_units(pruned) == length(units)
    @test LVDJuice.num_sum_edges(pruned) == count(e -> any(u -> e in LVDJuice.edges(c, u), units), keys(left))
    @test length(pruned.leaf) == sum(Int[c.categories[u] + 2 * (c.kind[u] == LVDJuice.LOGISTIC) for u in units])  # nothing else is kept
    @test all(isapprox.(exp.(log_likelihood(pruned, Z)), reduce(hcat, [pruned_values(c, left, Z[:, m]) for m in axes(Z, 2)]);
                        rtol=1e-5, atol=1e-12))
end

@testset "prune random circuits by flow" begin
    rng = MersenneTwister(50)
    for trial in 1:40
        c, X, _, head_of, Z, _ = random_query(rng)
        weights, before = rand(rng, Float32, size(X, 2)) .+ 0.1f0, arrays_of(c)
        flow = reference_edge_flows(c, X, head_of, weights)
        least = level_between(rng, flow)
        pruned = prune(c, X, head_of; min_flow=least / sum(weights), weights=weights)
        check_pruned(c, pruned, reference_edges(c, flow, least), Z)
        @test arrays_of(c) == before
    end
end

@testset "prune random circuits to a fraction" begin
    rng = MersenneTwister(51)
    for trial in 1:40
        c, X, _, head_of, Z, _ = random_query(rng)
        sum_edges = [e for u in eachindex(c.kind) if c.kind[u] == LVDJuice.SUM for e in LVDJuice.edges(c, u)]
        keep = rand(rng)
        flow = flows(c, X, head_of)[2]
        ranked = sort(sum_edges; by=e -> (-flow[e], e))[1:round(Int, keep * length(sum_edges))]
        marked = [e in ranked ? 1.0 + flow[e] : flow[e] / 1e9 - 1 for e in eachindex(flow)]
        check_pruned(c, prune(c, X, head_of; keep=keep), reference_edges(c, marked, 0.5), Z)
        whole = prune(c, X, head_of; keep=1)
        @test all(isapprox.(log_likelihood(whole, Z), log_likelihood(c, Z); rtol=1e-5, atol=1e-5))
    end
end

@testset "prune at 0 drops what has no flow, however small, and nothing else" begin
    rng = MersenneTwister(52)
    for trial in 1:40
        c, X, _, head_of, Z, _ = random_query(rng; N=rand(rng, (1, 3, 70)))
        weights = Float32.(rand(rng, (0, 1, 2), size(X, 2)))
        weights[1] = 1
        flow = reference_edge_flows(c, X, head_of, weights)
        pruned = prune(c, X, head_of; min_flow=0, weights=weights)
        check_pruned(c, pruned, reference_edges(c, flow, 0.0), Z)
        old, new = log_likelihood(c, X), log_likelihood(pruned, X)
        @test all(n -> weights[n] == 0 || new[head_of[n], n] >= old[head_of[n], n] - 1e-5, axes(X, 2))
    end

    # Edges that learning gave weight 0 go, and nothing else changes, whatever the sample.
    c = hclt([0, 1, 1, 2]; latents=6, categories=4, heads=2, seed=3)
    for u in eachindex(c.kind)
        c.kind[u] == LVDJuice.SUM || continue
        w = view(c.weight, LVDJuice.edges(c, u))
        w[rand(rng, 1:6, 3)] .= 0
        w ./= sum(w)
    end
    X = rand(rng, Int32(0):Int32(3), 4, 300)
    pruned = prune(c, X, rand(rng, 1:2, 300); min_flow=0)
    @test LVDJuice.num_sum_edges(pruned) < LVDJuice.num_sum_edges(c)
    @test log_likelihood(pruned, X) ≈ log_likelihood(c, X) rtol = 1e-7
    reached = findall(LVDJuice.reachable(c, c.heads, c.weight .> 0))
    kept = [c.weight[e] for u in reached for e in LVDJuice.edges(c, u) if c.weight[e] > 0]
    @test sort(unique(pruned.weight)) == sort(unique(kept))  # bit for bit

    # A flow of 1e-60, which single precision has not, is one; with evidence of zero there is none.
    small = Float32[1 - 1e-20 1e-20]
    b = LVDJuice.Builder(3)
    tables = [LVDJuice.add_inputs!(b, i, [Float32[0.5 0.5]; small; Float32[1 0]]) for i in 1:3]
    products = [LVDJuice.add_product!(b, [t[k] for t in tables]) for k in 1:3]
    c = Circuit(b, [LVDJuice.add_sum!(b, products, Float32[0.5, 0.25, 0.25])])
    ones3 = ones(Int32, 3, 5)
    @test flows(c, ones3, ones(Int, 5))[2][end - 1] == 0
    @test LVDJuice.num_sum_edges(prune(c, ones3, ones(Int, 5); min_flow=0)) == 2
    @test LVDJuice.num_sum_edges(prune(c, ones3, ones(Int, 5); min_flow=1e-30)) == 1
    soft = SoftEvidence(log.(Float32[0 0 0; 1 1 1][:, :, [1]]))
    @test LVDJuice.num_sum_edges(prune(c, soft, [1]; min_flow=0)) == 2
    hidden = Masked(ones3, Matrix{Bool}(trues(3, 5)))
    @test LVDJuice.num_sum_edges(prune(c, hidden, ones(Int, 5); min_flow=0)) == 3
end

@testset "pruned circuits stay in order for the plan" begin
    rng = MersenneTwister(53)
    c = hclt([0, 1, 1, 2, 2]; latents=18, categories=4, heads=2, seed=3)
    X = rand(rng, UInt8(0):UInt8(3), 5, 200)
    head_of = rand(rng, 1:2, 200)
    whole = Plan(prune(c, X, head_of; keep=1))
    @test all(LVDJuice.isdense(b) for g in whole.groups for b in g.blocks)
    @test length(whole.groups) == length(Plan(c).groups)
    pruned = Plan(prune(c, X, head_of; keep=0.1))
    @test length(pruned.groups) == length(Plan(c).groups)
    @test count(at -> at.shares_value, pruned.columns) == count(at -> at.shares_value, Plan(c).columns)
    # No sample for a head: by the definition, each of its sums keeps one edge.
    lone = prune(c, X, fill(1, 200))
    @test length(LVDJuice.children(lone, lone.heads[2])) == 1
end

@testset "prune says what is wrong" begin
    c = hclt([0, 1]; latents=2, categories=2)
    X = zeros(Int32, 2, 3)
    for (message, options) in (("min_flow = -1: want a number, 0 or more", (min_flow=-1,)),
                               ("min_flow = NaN", (min_flow=NaN,)), ("keep = 0: want a number in (0, 1]", (keep=0,)),
                               ("keep = 1.5: want", (keep=1.5,)), ("weights: all are 0", (weights=zeros(Float32, 3),)))
        @test occursin(message, message_of(() -> prune(c, X, ones(Int, 3); options...)))
    end
    @test occursin("heads 0..0", message_of(() -> prune(c, X, [1, 2, 1])))
end

@testset "the nth largest number" begin
    rng = MersenneTwister(33)
    for trial in 1:200
        numbers = rand(rng, 1:40) .* rand(rng, (0.0, 1e-310, 1e-30, 1.0, 1e300), rand(rng, 1:60))
        numbers .+= rand(rng, length(numbers)) .* rand(rng, Bool)
        candidate = rand(rng, Bool, length(numbers))
        sorted = sort(numbers[candidate]; rev=true)
        for n in eachindex(sorted)
            @test LVDJuice.nth_largest(numbers, candidate, n) == (sorted[n], count(==(sorted[n]), sorted[1:n]))
        end
    end
end
