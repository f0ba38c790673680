# What follows from posterior flows, and two circuits beside each other: against enumeration of induced trees and of all assignments.

"All induced trees of unit `u`: the edges that are taken, and the inputs that are reached."
function induced_trees(c, u)
    LVDJuice.isinput(c.kind[u]) && return [(Int[], [u])]
    if c.kind[u] == LVDJuice.SUM
        return [([e; es], inputs) for e in LVDJuice.edges(c, u) for (es, inputs) in induced_trees(c, LVDJuice.child(c, u, e))]
    end
    trees = [(Int[], Int[])]
    for v in LVDJuice.children(c, u)
        trees = [([a; es], [i; inputs]) for (a, i) in trees for (es, inputs) in induced_trees(c, v)]
    end
    return trees
end

"The probability of a tree together with what is known, x[v] = -1 where nothing is."
tree_probability(c, tree, x) = prod(Float64.(c.weight[tree[1]])) * prod(u -> reference_values(c, x)[u], tree[2])

entropy_of(p) = -sum(q * log(q) for q in p ./ sum(p) if q > 0)

"A random circuit with few induced trees for each head."
function small_circuit(rng, heads=1)
    while true
        c = random_circuit(rng, rand(rng, 1:4), rand(rng, 2:3), heads)
        count_trees(c) <= 400 && return c
    end
end

function count_trees(c)
    n = ones(length(c.kind))
    for u in eachindex(n)
        c.kind[u] == LVDJuice.SUM && (n[u] = sum(n[v] for v in LVDJuice.children(c, u)))
        c.kind[u] == LVDJuice.PRODUCT && (n[u] = prod(n[v] for v in LVDJuice.children(c, u)))
    end
    return maximum(n[c.heads])
end

@testset "entropy, moments and flows, by enumeration" begin
    rng = MersenneTwister(60)
    for trial in 1:6
        c, N = small_circuit(rng, 2), 18
        V, C = c.num_vars, maximum(c.categories)
        X, mask = rand(rng, Int32(0):Int32(C - 1), V, N), Matrix{Bool}(rand(rng, V, N) .< 0.6)
        head_of = rand(rng, 1:2, N)
        seen(n) = [mask[i, n] ? -1 : X[i, n] for i in 1:V]
        possible = [n for n in 1:N if reference_values(c, seen(n))[c.heads[head_of[n]]] > 0]
        X, mask, head_of = X[:, possible], mask[:, possible], head_of[possible]
        N = length(possible)
        query = Masked(X, mask)
        entropy = posterior_answer(c, query, LatentEntropy(zeros(N)); head_of=head_of).out
        found = posterior_answer(c, query, Moments(zeros(V, N), zeros(V, N), c); head_of=head_of)
        flow = posterior_answer(c, query, UnitFlows(zeros(length(c.kind), N)); head_of=head_of).out
        trees, Z = [induced_trees(c, u) for u in c.heads], assignments(V, C)
        for n in 1:N
            x = seen(n)
            @test isapprox(entropy[n], entropy_of([tree_probability(c, tree, x) for tree in trees[head_of[n]]]); rtol=1e-6, atol=1e-7)
            values = reference_values(c, x)
            @test close_to(flow[:, n], reference_flows(c, values, c.heads[head_of[n]])[1]; rtol=1e-6)
            p = [all(i -> mask[i, n] || Z[i, m] == X[i, n], 1:V) ? reference_values(c, Z[:, m])[c.heads[head_of[n]]] : 0.0 for m in axes(Z, 2)]
            p ./= sum(p)
            mean = Z * p
            @test isapprox(found.mean[:, n], mean; rtol=1e-5, atol=1e-5)
            @test isapprox(found.variance[:, n], (Z .- mean) .^ 2 * p; rtol=1e-5, atol=1e-5)
        end
    end
end

@testset "answers of rows that underflow, and in parts" begin
    rng = MersenneTwister(61)
    V, N = 400, 20
    c = from_tree([0; 1:V - 1]; latents=3, categories=256, perturbation=0.9, seed=1)
    X = rand(rng, Int32(0):Int32(255), V, N)
    query = Masked(X, Matrix{Bool}(rand(rng, V, N) .< 0.1))
    flow = posterior_answer(c, query, UnitFlows(zeros(length(c.kind), N))).out
    for n in (1, N)
        @test close_to(flow[:, n], LVDJuice.exact_unit_flows(c, LVDJuice.log_values(c, query, n), 1); rtol=1e-8)
    end
    for answer in (() -> UnitFlows(zeros(length(c.kind), N)), () -> LatentEntropy(zeros(N)))  # as circuits with more edges than `LARGE` go
        job = LVDJuice.PosteriorJob(Plan(c), query, ones(Int32, N), answer())
        job.parts = [i:min(i + 99, length(job.runs)) for i in 1:100:length(job.runs)]
        advance!(job)
        @test job.answer.out == posterior_answer(c, query, answer()).out
    end
    # A sum whose weights are all on children far below the largest has a scale of its own.
    b = LVDJuice.Builder(100)
    ones_of = [LVDJuice.add_inputs!(b, i, Float32[0.999 0.001; 1e-6 0.999999]) for i in 1:100]
    likely, unlikely, other = (LVDJuice.add_product!(b, [own[k] for own in ones_of]) for k in (1, 2, 2))
    top = LVDJuice.add_sum!(b, [likely, unlikely, other], Float32[0, 0.25, 0.75])
    c = Circuit(b, [top])
    query = Masked(zeros(Int32, 100, 1), fill(false, 100, 1))
    @test isapprox(posterior_answer(c, query, LatentEntropy(zeros(1))).out[1], entropy_of([0.25, 0.75]); rtol=1e-6)
    flow = posterior_answer(c, query, UnitFlows(zeros(length(c.kind), 1))).out
    @test isapprox(flow[[likely, unlikely, other], 1], [0, 0.25, 0.75]; rtol=1e-6)
end

@testset "inner products, by enumeration" begin
    rng, V, C = MersenneTwister(62), 5, 3
    tree = [0, 1, 1, 2, 2]
    circuits = [from_tree(tree; latents=k, categories=C, perturbation=0.9, seed=k, heads=2) for k in (2, 4)]
    push!(circuits, fully_factorized(num_vars=V, num_cats=C, heads=2))  # cuts into single variables what the tree cuts into subtrees
    Z = assignments(V, C)
    p(c, head) = [reference_values(c, Z[:, m])[c.heads[head]] for m in axes(Z, 2)]
    for c in circuits, d in circuits, head in 1:LVDJuice.num_heads(c)
        @test isapprox(log_inner_product(c, d, head, 1), log(sum(p(c, head) .* p(d, 1))); rtol=1e-6)
    end
    same = LVDJuice.with_heads(circuits[1], [2])
    sparse = prune(same, rand(rng, Int32(0):Int32(C - 1), V, 50), ones(Int, 50); min_flow=0.2)
    @test isapprox(log_inner_product(sparse, circuits[2]), log(sum(p(sparse, 1) .* p(circuits[2], 1))); rtol=1e-6)
    @test_throws ArgumentError log_inner_product(circuits[1], from_tree([0, 1, 2, 3, 4]; latents=2, categories=C))
    @test_throws ArgumentError log_inner_product(circuits[1], from_tree(tree; latents=2, categories=4))
    long = from_tree([0; 1:1999]; latents=2, categories=256)  # e^-11,000, and deeper than a stack
    @test isapprox(log_inner_product(long, long), -2000 * log(256); rtol=0.05)
end

@testset "divergences, by enumeration" begin
    rng = MersenneTwister(63)
    for trial in 1:6
        c = small_circuit(rng)
        d = Circuit(c.num_vars, arrays_of(c)...)
        for u in 1:length(d.kind)
            d.kind[u] == LVDJuice.SUM && (w = rand(rng, Float32, length(LVDJuice.edges(d, u))) .+ 0.1f0; d.weight[LVDJuice.edges(d, u)] .= w ./ sum(w))
        end
        Z, total = assignments(c.num_vars, maximum(c.categories)), 0.0
        for tree in induced_trees(c, c.heads[1]), m in axes(Z, 2)
            p, q = tree_probability(c, tree, Z[:, m]), tree_probability(d, tree, Z[:, m])
            p > 0 && (total += p * log(p / q))
        end
        @test isapprox(kl_divergence(c, d), total; rtol=1e-5, atol=1e-6)
        @test kl_divergence(c, c) == 0
    end
end

"A decision tree: each sum asks for the value of a variable, in any order; `rest` units are of the variables that are left."
function decision_tree!(b, rng, variables, C)
    i, left = rand(rng, variables), copy(variables)
    filter!(!=(i), left)
    indicators = LVDJuice.add_indicators!(b, i, 0:C - 1, C)
    isempty(left) || (indicators = [LVDJuice.add_product!(b, [u, decision_tree!(b, rng, left, C)]) for u in indicators])
    weights = rand(rng, Float32, C) .+ 0.1f0
    return LVDJuice.add_sum!(b, indicators, weights ./ sum(weights))
end

@testset "determinism, and most probable completions where it holds" begin
    rng = MersenneTwister(64)
    for trial in 1:4
        V, C = rand(rng, 2:4), rand(rng, 2:3)
        b = LVDJuice.Builder(V)
        c = Circuit(b, [decision_tree!(b, rng, collect(1:V), C)])
        @test is_deterministic(c)
        Z = assignments(V, C)
        p = [reference_values(c, Z[:, m])[c.heads[1]] for m in axes(Z, 2)]
        X, mask = rand(rng, Int32(0):Int32(C - 1), V, 20), Matrix{Bool}(rand(rng, V, 20) .< 0.6)
        completed = mpe(c, Masked(X, mask))
        for n in 1:20
            best = maximum(p[m] for m in axes(Z, 2) if all(i -> mask[i, n] || Z[i, m] == X[i, n], 1:V))
            @test isapprox(p[index_of(completed[:, n:n], C)[1]], best; rtol=1e-6)
        end
    end
    two(tables...) = begin  # a sum over two products of inputs with these tables
        b = LVDJuice.Builder(2)
        inputs = [LVDJuice.add_inputs!(b, i, Float32.(tables[i])) for i in 1:2]
        Circuit(b, [LVDJuice.add_sum!(b, [LVDJuice.add_product!(b, [own[k] for own in inputs]) for k in 1:2], Float32[0.5, 0.5])])
    end
    apart, alike = [0.5 0.5 0; 0 0 1], [0.5 0.5; 0.1 0.9]
    @test is_deterministic(two(apart, alike))
    @test !is_deterministic(two(alike, alike))
    once = two(alike, alike)
    once.weight .= ifelse.(once.weight .== 0.5f0, Float32[i for i in 1:length(once.weight)] .% 2, once.weight)  # one of them has weight 0
    @test is_deterministic(once)
    @test !is_deterministic(two(apart, alike), two([0 0.5 0.5; 1 0 0], alike))  # each is, but not in the same way
end
