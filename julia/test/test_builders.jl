sums_of(c) = [u for u in eachindex(c.kind) if c.kind[u] == LVDJuice.SUM]
products_of(c) = [u for u in eachindex(c.kind) if c.kind[u] == LVDJuice.PRODUCT]

"The scope of every unit, from the definition."
function scopes(c)
    scope = Vector{Vector{Int}}(undef, length(c.kind))
    for u in eachindex(scope)
        scope[u] = LVDJuice.isinput(c.kind[u]) ? [c.variable[u]] : sort(unique(reduce(vcat, scope[LVDJuice.children(c, u)])))
    end
    return scope
end

@testset "region graphs" begin
    for (V, depth, replicas) in ((8, 2, 3), (7, 3, 2), (5, 9, 4), (2, 1, 5), (1, 3, 2))
        regions = LVDJuice.random_region_graph(LVDJuice.SplitMix(5), V, depth, replicas)
        @test regions[1].scope == 1:V && allunique(region.scope for region in regions)
        @test length(regions[1].partitions) <= replicas
        for region in regions
            @test issorted(region.scope) && allunique(region.partitions)
            for (i, j) in region.partitions
                left, right = regions[i].scope, regions[j].scope
                @test sort(vcat(left, right)) == region.scope
                @test abs(length(left) - length(right)) <= 1
            end
            # A region is not cut only if it has one variable or lies `depth` deep.
            isempty(region.partitions) && @test length(region.scope) <= max(1, cld(V, 2^depth))
        end
    end
    # With 5 variables, cuts meet in the same regions: pairs have one partition, triples up to three.
    regions = LVDJuice.random_region_graph(LVDJuice.SplitMix(1), 5, 9, 200)
    @test [count(r -> length(r.scope) == n, regions) for n in 1:5] == [5, 10, 10, 0, 1]
    @test [maximum(length(r.partitions) for r in regions if length(r.scope) == n) for n in (1, 2, 3, 5)] == [0, 1, 3, 10]
    # Halves are uniformly random: each of the 35 ways to cut 8 variables in two comes up.
    @test length(LVDJuice.random_region_graph(LVDJuice.SplitMix(2), 8, 1, 600)[1].partitions) == 35
end

@testset "the size of a RAT-SPN, counted by hand" begin
    # 8 variables, 2 deep: each replica cuts the whole into 2 regions of 4, each into 2 of 2. With S sums and I inputs there are,
    # for each replica: 4 leaf regions with 2 I inputs and I products; 2 regions with I^2 products and S sums; and S^2 products of
    # the whole, over which are the heads.
    S, I, C, heads, replicas = 3, 4, 5, 2, 2
    c = rat_spn(num_vars=8, depth=2, replicas=replicas, num_sums=S, num_inputs=I, num_cats=C, heads=heads, seed=3)
    @test length(unique(scopes(c))) == 8 + replicas * 6 + 1  # no two regions of the replicas met
    @test count(LVDJuice.isinput, c.kind) == replicas * 4 * 2I
    @test length(products_of(c)) == replicas * (4I + 2 * I^2 + S^2)
    @test length(sums_of(c)) == replicas * 2S + heads
    @test LVDJuice.num_sum_edges(c) == replicas * 2S * I^2 + heads * replicas * S^2
    @test LVDJuice.num_params(c) == LVDJuice.num_sum_edges(c) + replicas * 8 * I * C
    # Every head mixes all pairs of all replicas, and so does every region's every sum.
    @test all(length(LVDJuice.children(c, h)) == replicas * S^2 for h in c.heads)
    # Regions of one variable: inputs without a product. Two variables: one partition, whatever the replicas.
    c = rat_spn(num_vars=2, depth=1, replicas=3, num_sums=S, num_inputs=I, num_cats=C)
    @test (count(LVDJuice.isinput, c.kind), length(products_of(c)), length(sums_of(c))) == (2I, I^2, 1)
    c = rat_spn(num_vars=1, depth=1, replicas=3, num_sums=S, num_inputs=I, num_cats=C, heads=2)
    @test (count(LVDJuice.isinput, c.kind), length(products_of(c)), length(sums_of(c))) == (I, 0, 2)
end

@testset "RAT-SPNs are normalised, and their plan is dense" begin
    for (V, depth, replicas, S, I, C, heads) in (
        (4, 1, 1, 1, 1, 2, 1), (4, 2, 3, 2, 3, 2, 2), (5, 9, 4, 3, 2, 2, 3), (6, 2, 2, 1, 4, 2, 1), (3, 2, 5, 2, 2, 3, 2),
        (1, 1, 1, 2, 3, 4, 2), (3, 3, 2, 4, 1, 1, 1))
        c = rat_spn(num_vars=V, depth=depth, replicas=replicas, num_sums=S, num_inputs=I, num_cats=C, heads=heads, seed=V)
        X = assignments(V, C)
        p = exp.(log_likelihood(c, X))
        @test all(isapprox.(sum(p, dims=2), 1; atol=1e-5))
        @test close_to(p, reduce(hcat, [reference_values(c, X[:, n])[c.heads] for n in axes(X, 2)]))
        plan = Plan(c)
        @test all(LVDJuice.isdense(b) for g in plan.groups for b in g.blocks)
        # One group for each region's sums, each partition's products, and each variable's inputs.
        @test count(g -> g.kind == LVDJuice.SUM, plan.groups) == length(unique(scopes(c)[u] for u in sums_of(c)))
        @test count(g -> LVDJuice.isinput(g.kind), plan.groups) == V
    end
end

@testset "every sum of a RAT-SPN has parameters of its own, and learns a function of its own" begin
    # Three noisy patterns, and one replica (several could learn a pattern each): every region has to tell them apart.
    rng = MersenneTwister(31)
    patterns = rand(rng, 0:3, 12, 3)
    X = [rand(rng) < 0.9 ? patterns[i, 1 + n % 3] : rand(rng, 0:3) for i in 1:12, n in 1:1000]
    c = rat_spn(num_vars=12, depth=2, replicas=1, num_sums=6, num_inputs=6, num_cats=4, seed=1)
    @test allunique(c.weight[LVDJuice.edges(c, u)] for u in sums_of(c))
    job = EMJob(c, X, ones(Int, 1000); epochs=60, batch_size=100, step_size=(0.5, 0.02), pseudocount=0.01)
    before = advance!(job)[3]
    after = finish!(job)
    truth = log(1 / 3) + 12 * (0.925 * log(0.925) + 0.075 * log(0.025))
    @test before < truth - 3
    @test after > truth - 0.3  # halves that knew nothing of the pattern would cost log(3) more
    values, scope = reduce(hcat, [LVDJuice.log_values(c, X, n) for n in 1:200]), scopes(c)
    for region in unique(scope[u] for u in sums_of(c) if length(scope[u]) < 12)
        sums = [values[u, :] for u in sums_of(c) if scope[u] == region]
        gaps = [maximum(abs.(a .- b)) for (i, a) in enumerate(sums) for b in sums[1:i - 1]]
        @test length(sums) == 6
        @test minimum(gaps) > 0.01 && maximum(gaps) > 5  # no two alike, and some very different
    end
end

@testset "a RAT-SPN's seed, start and limits" begin
    usual = (num_vars=6, depth=2, replicas=2, num_sums=3, num_inputs=2, num_cats=4)
    make(; kwargs...) = rat_spn(; usual..., kwargs...)
    a, b, other = make(seed=4), make(seed=4), make(seed=5)
    @test (a.child, a.weight, a.leaf, a.variable) == (b.child, b.weight, b.leaf, b.variable)
    @test a.weight != other.weight && a.child != other.child
    for u in sums_of(a)
        w = a.weight[LVDJuice.edges(a, u)]
        @test sum(w) ≈ 1 && maximum(w) / minimum(w) <= 1.4 / 0.6 + 1e-4
    end
    @test all(isapprox.(make(perturbation=0).leaf, 0.25))
    for name in (:num_vars, :depth, :replicas, :num_sums, :num_inputs, :num_cats, :heads)
        @test occursin("$name = 0: want at least 1", message_of(() -> make(; name => 0)))
    end
    @test occursin("perturbation = 1.0", message_of(() -> make(perturbation=1.0)))
end

@testset "full factorisation" begin
    rng = MersenneTwister(32)
    c = fully_factorized(num_vars=4, num_cats=3, heads=2)
    @test all(isapprox.(log_likelihood(c, rand(rng, 0:2, 4, 20)), 4 * log(1 / 3); rtol=1e-6))
    # One full-batch step of size 1: the frequencies, with the pseudocount shared out.
    X, head_of = rand(rng, 0:2, 4, 90), rand(rng, 1:2, 90)
    finish!(EMJob(c, X, head_of; epochs=1, batch_size=90, step_size=(1.0, 1.0), pseudocount=0.3))
    for h in 1:2, x in (zeros(Int, 4), [0, 1, 2, 1])
        mine = X[:, head_of .== h]
        p = prod((count(==(x[i]), mine[i, :]) + 0.1) / (size(mine, 2) + 0.3) for i in 1:4)
        @test log_likelihood(c, reshape(x, 4, 1))[h] ≈ log(p) rtol=1e-5
    end
    @test log_likelihood(fully_factorized(num_vars=1, num_cats=2), [0 1]) ≈ fill(log(0.5), 1, 2) rtol=1e-6
    @test occursin("num_cats = 0", message_of(() -> fully_factorized(num_vars=1, num_cats=0)))
    # Thousands of variables.
    wide = fully_factorized(num_vars=3072, num_cats=256)
    @test log_likelihood(wide, rand(rng, UInt8, 3072, 3)) ≈ fill(-3072 * log(256), 1, 3) rtol=1e-6
end

@testset "an HCLT over a given tree" begin
    tree = [2, 0, 2, 3]
    a, b = from_tree(tree; latents=3, categories=2, heads=2, seed=6), hclt(tree; latents=3, categories=2, heads=2, seed=6)
    @test (a.child, a.weight, a.leaf) == (b.child, b.weight, b.leaf)
    @test LVDJuice.tree_circuit([1, -1, 1, 2], 3, 2, 2, 0.4, 6).weight == a.weight
    for (parent, reason) in (([0, 0, 1], "found 2 roots"), ([2, 1], "found 0 roots"), (Int[], "found 0 roots"),
                             ([0, 3, 2], "variable 1 is on or below a cycle"), ([0, 2], "variable 1 is on or below a cycle"),
                             ([0, 5], "variable 1 has the parent 4, wanted 0..1"), ([0, -3], "variable 1 has the parent -4"))
        @test occursin(reason, message_of(() -> from_tree(parent; latents=2, categories=2)))
    end
end

@testset "mixtures" begin
    trees = [[2, 0, 2, 3], [0, 1, 2, 3], [2, 0, 2, 2]]
    parts = [from_tree(tree; latents=3, categories=2, heads=2, perturbation=0.9, seed=t) for (t, tree) in enumerate(trees)]
    X, shares = assignments(4, 2), [1, 2, 5]
    m = mixture(parts, shares)
    @test LVDJuice.num_heads(m) == 2
    @test LVDJuice.num_params(m) == sum(LVDJuice.num_params, parts) + 2 * 3
    expected = sum(share / 8 .* exp.(log_likelihood(part, X)) for (share, part) in zip(shares, parts))
    @test close_to(exp.(log_likelihood(m, X)), expected)
    @test close_to(exp.(log_likelihood(mixture(parts), X)), sum(exp.(log_likelihood(part, X)) for part in parts) ./ 3)
    # One part, and a mixture of mixtures.
    @test close_to(log_likelihood(mixture(parts[1:1]), X), log_likelihood(parts[1], X))
    nested = mixture([mixture(parts[1:2], [1, 2]), parts[3]], [3, 5])
    @test close_to(exp.(log_likelihood(nested, X)), expected)
    # The parts keep their parameters when the mixture learns.
    before = copy(parts[1].weight)
    finish!(EMJob(m, X, ones(Int, 16); epochs=2))
    @test parts[1].weight == before
    # The plan keeps the trees apart, also where they have a scope in common: with one head, all blocks are dense.
    plan = Plan(mixture([from_tree(tree; latents=3, categories=2) for tree in trees]))
    @test all(LVDJuice.isdense(b) for g in plan.groups for b in g.blocks)
    # EM on the whole: a full-batch step agrees with the definition.
    m = mixture(parts, shares)
    weight, leaf = reference_step(m, X[:, 3:16], fill(2, 14), 0.7, 0.2)
    finish!(EMJob(m, X[:, 3:16], fill(2, 14); epochs=1, batch_size=14, step_size=(0.7, 0.7), pseudocount=0.2))
    @test close_to(m.weight, weight; rtol=1e-4) && close_to(m.leaf, leaf; rtol=1e-4)
    # Inputs of all kinds are copied.
    rng = MersenneTwister(33)
    odd = [random_circuit(rng, 3, 2, 1) for _ in 1:2]
    cube = assignments(3, 2)
    @test close_to(exp.(log_likelihood(mixture(odd), cube)), sum(exp.(log_likelihood(part, cube)) for part in odd) ./ 2)
    wide, single = from_tree([0, 1, 2]; latents=2, categories=2), from_tree(trees[1]; latents=2, categories=2)
    for (arguments, reason) in (((LVDJuice.Circuit[],), "found no circuits"), ((parts, [1, 2]), "found 2 weights for 3 circuits"),
                                ((parts, [1, -1, 1]), "found weights (-1, 1)"), ((parts, [0, 0, 0]), "not all 0"),
                                (([parts[1], wide],), "circuit 1 has 3 variables and 1 heads, the first 4 and 2"),
                                (([parts[1], single],), "circuit 1 has 4 variables and 1 heads"))
        @test occursin(reason, message_of(() -> mixture(arguments...)))
    end
end

@testset "the joint circuit" begin
    # Two positions of two variables each, in an order that mixes them; five values of z: three heads and two.
    parts = [from_tree([0, 1]; latents=3, categories=2, heads=3, perturbation=0.9, seed=1),
             rat_spn(num_vars=2, depth=1, replicas=1, num_sums=2, num_inputs=2, num_cats=2, heads=2, perturbation=0.9)]
    prior, variables = from_tree([0, 1]; latents=2, categories=5, perturbation=0.9, seed=2), [4 1; 2 3]
    joint, X, Z = joint_circuit(prior, parts, variables), assignments(4, 2), assignments(2, 5)
    given = [reduce(vcat, [exp.(log_likelihood(part, X[variables[:, i], :])) for part in parts]) for i in 1:2]
    p_z = exp.(log_likelihood(prior, Z))
    expected = sum(p_z[n] .* given[1][Z[1, n] + 1:Z[1, n] + 1, :] .* given[2][Z[2, n] + 1:Z[2, n] + 1, :] for n in axes(Z, 2))
    @test close_to(exp.(log_likelihood(joint, X)), expected)
    @test sum(exp.(log_likelihood(joint, X))) ≈ 1 atol=1e-5
    @test (joint.num_vars, LVDJuice.num_heads(joint)) == (4, 1)
    # Dense: the heads' copies are mixed by matrix products.
    @test all(LVDJuice.isdense(b) for g in Plan(joint).groups for b in g.blocks)
    # A prior of other inputs, which rule values out, and of several heads.
    rng = MersenneTwister(34)
    odd = random_circuit(rng, 3, 2, 2)
    pair = fully_factorized(num_vars=1, num_cats=2, heads=2)
    pair.leaf .= [0.9, 0.2, 0.1, 0.8]
    joint, X = joint_circuit(odd, [pair], [3 1 2]), assignments(3, 2)
    p_z, given = exp.(log_likelihood(odd, X)), exp.(log_likelihood(pair, [0 1]))
    at(n, i) = X[[3, 1, 2][i], n] + 1
    expected = [sum(p_z[h, m] * prod(given[X[i, m] + 1, at(n, i)] for i in 1:3) for m in axes(X, 2)) for h in 1:2, n in axes(X, 2)]
    @test close_to(exp.(log_likelihood(joint, X)), expected)
    @test all(>(0), joint.weight)
    for (arguments, reason) in (((prior, LVDJuice.Circuit[], variables), "found no circuits"),
                                ((prior, parts, [4 1 5; 2 3 6]), "variables of 3 positions, the prior has 2"),
                                ((prior, parts, [4 1; 2 1]), "not each of 1..4 once"), ((prior, parts, [1 2]), "circuit 0 has 2 variables, a patch 1"),
                                ((prior, parts[1:1], variables), "the prior has 5 categories at position 0, wanted 3: the heads"))
        @test occursin(reason, message_of(() -> joint_circuit(arguments...)))
    end
end

@testset "prior weights of the heads" begin
    b = LVDJuice.Builder(1)
    units = LVDJuice.add_inputs!(b, 1, Float32[0.25 0.75; 0.5 0.5; 0.1 0.9])
    c, X, heads = Circuit(b, units, [0.5, 0.25, 0.25]), [0 1 0], Int32[1, 2, 3]
    @test hclt([0, 1]; latents=2, categories=2, heads=4).head_weight == fill(0.25f0, 4)
    @test prune(c, X, heads).head_weight == [0.5, 0.25, 0.25]
    @test grow(c, X, heads; select=[3, 1], threshold=0).head_weight == [0.25, 0.25, 0.125, 0.125, 0.25]
    @test with_heads(c, [3, 1]).head_weight ≈ [1 / 3, 2 / 3]
    @test with_heads(Circuit(b, units, [1, 0, 0]), [2, 3]).head_weight == [0.5, 0.5]
    other = Circuit(b, units[1:1])
    @test side_by_side([c, other]).head_weight == [0.375, 0.1875, 0.1875, 0.25]
    @test mixture([c, Circuit(b, units, [0, 0, 1])], [3, 1]).head_weight == [0.375, 0.1875, 0.4375]
    for (weights, reason) in (([0.5, 0.5], "2 prior weights for 3 heads"), ([0.5, 0.5, 0.5], "sum to 1.5"), ([2, -1, 0], "sum to 1"))
        @test occursin(reason, message_of(() -> Circuit(b, units, weights)))
    end
end
