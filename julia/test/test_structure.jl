"Mutual information from the definition, cell by cell."
function naive_mutual_information(X, C, a)
    V, N = size(X)
    marginal(i, x) = (count(==(x), X[i, :]) + a / C) / (N + a)
    joint(i, j, x, y) = (count(n -> X[i, n] == x && X[j, n] == y, 1:N) + a / C^2) / (N + a)
    term(p, q) = p > 0 ? p * log(p / q) : 0.0
    return [i == j ? 0.0 : sum(term(joint(i, j, x, y), marginal(i, x) * marginal(j, y)) for x in 0:C-1, y in 0:C-1)
            for i in 1:V, j in 1:V]
end

"The weight of the best spanning tree, by trying all parent assignments."
function best_tree_weight(mi)
    V, best = size(mi, 1), -Inf
    for code in 0:V^(V - 1) - 1
        parent = [0; [(code ÷ V^(i - 2)) % V + 1 for i in 2:V]]
        reaches_root(i) = any(==(1), Iterators.take(Iterators.rest(iterate_parents(parent, i)), V))
        all(reaches_root, 2:V) && (best = max(best, sum(mi[i, parent[i]] for i in 2:V)))
    end
    return best
end

iterate_parents(parent, i) = (k = Ref(i); (k[] = k[] == 0 ? 0 : parent[k[]] for _ in 1:length(parent)))

@testset "mutual information" begin
    rng = MersenneTwister(1)
    X = rand(rng, 0:3, 4, 60)
    X[3, :] .= (X[1, :] .+ X[2, :]) .% 4
    for a in (0.0, 0.1, 2.0)
        @test finish!(MutualInformationJob(X; categories=4, pseudocount=a)) ≈ naive_mutual_information(X, 4, a) atol=1e-12
    end
    # More categories than a table holds: the sorted path, on the same values spread out.
    spread = X .* 5000
    C = 20_000
    wide = finish!(MutualInformationJob(spread; categories=C, pseudocount=0.0))
    @test wide ≈ naive_mutual_information(X, 4, 0.0) atol=1e-12
    sparse = finish!(MutualInformationJob(X; categories=300, pseudocount=0.1))
    @test sparse ≈ naive_mutual_information(X, 300, 0.1) atol=1e-10
    job = MutualInformationJob(X; categories=4)
    @test advance!(job, 0.0) == (false, 1, 4)  # in pieces
    @test finish!(job) ≈ naive_mutual_information(X, 4, 0.1) atol=1e-12
    @test occursin("row 2, variable 1: value 4 is outside 0..3",
                   message_of(() -> MutualInformationJob([0 1 2; 3 3 4]; categories=4)))
end

@testset "mutual information where values are missing: of the samples in which both are seen" begin
    rng = MersenneTwister(11)
    X, mask = rand(rng, 0:3, 4, 90), Matrix{Bool}(rand(rng, 4, 90) .< 0.4)
    X[3, :] .= (X[1, :] .+ (rand(rng, 90) .< 0.3)) .% 4
    function of_complete_pairs(C, a)
        mi = zeros(4, 4)
        for i in 1:4, j in 1:4
            both = [n for n in 1:90 if !mask[i, n] && !mask[j, n]]
            i == j || (mi[i, j] = naive_mutual_information(X[[i, j], both], C, a)[1, 2])
        end
        return mi
    end
    hidden = copy(X)
    hidden[mask] .= -3  # not looked at
    for a in (0.0, 0.1, 2.0)
        @test finish!(MutualInformationJob(hidden; categories=4, pseudocount=a, mask=mask)) ≈ of_complete_pairs(4, a) atol=1e-12
    end
    spread = 5000 .* hidden
    @test finish!(MutualInformationJob(spread; categories=20_000, pseudocount=0.0, mask=mask)) ≈ of_complete_pairs(4, 0.0) atol=1e-12
    nothing_hidden = finish!(MutualInformationJob(X; categories=4, mask=fill(false, 4, 90)))
    @test nothing_hidden ≈ finish!(MutualInformationJob(X; categories=4)) atol=1e-12
    @test finish!(MutualInformationJob(hidden; categories=4, pseudocount=0.0, mask=fill(true, 4, 90))) == zeros(4, 4)
    @test_throws ArgumentError MutualInformationJob(X; categories=4, mask=mask[:, 1:3])
end

@testset "Chow-Liu trees" begin
    rng = MersenneTwister(2)
    for _ in 1:10
        mi = Symmetric(rand(rng, 5, 5))
        parent = chow_liu_tree(mi)
        @test count(iszero, parent) == 1
        @test sum(mi[i, parent[i]] for i in 1:5 if parent[i] != 0) ≈ best_tree_weight(mi)
    end
    # A path is rooted in its middle.
    path = [abs(i - j) == 1 ? 1.0 : 0.0 for i in 1:7, j in 1:7]
    @test chow_liu_tree(path) == [2, 3, 4, 0, 4, 5, 6]
    @test chow_liu_tree(zeros(1, 1)) == [0]
    @test count(iszero, chow_liu_tree(zeros(4, 4))) == 1
end

@testset "HCLT" begin
    parent = [2, 0, 2, 3]
    c = hclt(parent; latents=3, categories=5, heads=2, seed=7)
    @test length(c.heads) == 2
    @test count(LVDJuice.isinput, c.kind) == 4 * 3
    @test count(==(LVDJuice.PRODUCT), c.kind) == 2 * 3  # of the two variables with children
    @test count(==(LVDJuice.SUM), c.kind) == 3 * 3 + 2
    @test LVDJuice.num_params(c) == 4 * 3 * 5 + 3 * 9 + 2 * 3
    @test c.weight == hclt(parent; latents=3, categories=5, heads=2, seed=7).weight
    @test c.leaf != hclt(parent; latents=3, categories=5, heads=2, seed=8).leaf
    # The start: proportional to U(0.6, 1.4).
    for u in 1:length(c.kind)
        w = c.kind[u] == LVDJuice.SUM ? c.weight[c.child_start[u]:c.child_start[u + 1] - 1] :
            LVDJuice.isinput(c.kind[u]) ? c.leaf[range(c.param_start[u], step=c.param_stride[u], length=5)] : Float32[1]
        @test sum(w) ≈ 1 && maximum(w) / minimum(w) <= 1.4 / 0.6 + 1e-4
    end
    @test all(isapprox.(hclt([0]; latents=2, categories=2, perturbation=0).leaf, 0.5))
    @test occursin("num_latents = 0", message_of(() -> hclt(parent; latents=0, categories=5)))
end

@testset "an HCLT that starts from observed states" begin
    rng = MersenneTwister(5)
    parent, K, C, N = [2, 0, 2], 3, 4, 200
    X, states, head_of = rand(rng, UInt8(0):UInt8(C - 1), 3, N), rand(rng, Int32(0):Int32(K - 1), 3, N), rand(rng, Int32(1):Int32(2), N)
    observed = ObservedStates(X, states, head_of)
    c = hclt(parent; latents=K, categories=C, heads=2, perturbation=0, observed=observed)
    # Without perturbation: (counts + 5 m) / (their sum + 5), where m is the mean over all units, with one sample more for each entry.
    expected(x, n) = (count(==(x), n[1]) + 5 * (count(==(x), n[2]) + 1) / (N + n[3])) / (length(n[1]) + 5)
    variable = [c.variable[u] for u in eachindex(c.kind) if LVDJuice.isinput(c.kind[u])]
    for i in 1:3, k in 0:K - 1
        u = findall(u -> LVDJuice.isinput(c.kind[u]) && c.variable[u] == i, eachindex(c.kind))[k + 1]
        own = X[i, states[i, :] .== k]
        @test LVDJuice.probabilities(c, u) ≈ [expected(x, (own, X[i, :], C)) for x in 0:C - 1] rtol=1e-6
    end
    weights = [c.weight[LVDJuice.edges(c, u)] for u in eachindex(c.kind) if c.kind[u] == LVDJuice.SUM]
    wanted = vcat([[[expected(k, (states[i, states[2, :] .== l], states[i, :], K)) for k in 0:K - 1] for l in 0:K - 1] for i in (3, 1)]...,
                  [[expected(k, (states[2, head_of .== h], states[2, :], K)) for k in 0:K - 1] for h in 1:2])
    @test sort(weights) ≈ sort(wanted) rtol=1e-6
    # A state that was never observed is near what all have in common, and no two are the same.
    few = hclt(parent; latents=K + 2, categories=C, heads=2, seed=1, observed=observed)
    unseen = [LVDJuice.probabilities(few, u) for u in eachindex(few.kind) if LVDJuice.isinput(few.kind[u]) && few.variable[u] == 1][K + 1:K + 2]
    @test unseen[1] != unseen[2] && all(p -> all(0.5 .< p ./ ([count(==(x), X[1, :]) for x in 0:C - 1] ./ N) .< 2), unseen)
end
