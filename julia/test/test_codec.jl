using LVDJuice: CodingPlan, CodingTile, CodingChannel, Coder, Coding, Layout, Doubles, LANES, TINY

"Of each image the bits that its tables give it, and the number of tables."
function coded_bits(coder, X)
    job, bits, tables = LVDJuice.coding(coder, Matrix{Int32}(X), false), zeros(size(X, 2)), 0
    out = zeros(LVDJuice.widest_table(coder) * size(X, 2))
    while (m = LVDJuice.next_table!(out, job, Int32[])) > 0
        LVDJuice.own_symbols!(job)
        for n in axes(X, 2)
            own = out[(n - 1) * m + 1:n * m]
            @test all(w -> isinteger(w) && w >= 1, own) && sum(own) == 2^24
            bits[n] -= log2(own[job.symbol[n] + 1] / 2^24)
        end
        tables += 1
    end
    @test LVDJuice.next_table!(out, job, Int32[]) == 0
    return bits, tables
end

"Decodes by symbols that `choose(table)` takes from each table; returns the images."
function decoded(choose, coder, N)
    job, symbols = LVDJuice.coding(coder, zeros(Int32, LVDJuice.coder_size(coder)[1], N), true), zeros(Int32, N)
    out = zeros(LVDJuice.widest_table(coder) * N)
    while (m = LVDJuice.next_table!(out, job, symbols)) > 0
        symbols = Int32[choose(out[(n - 1) * m + 1:n * m]) - 1 for n in 1:N]
    end
    return job.X
end

lanes_of(x) = ntuple(i -> VecElement(Float64(x[i])), Val(LANES))
numbers(v) = [x.value for x in v]

@testset "lanes of Float64" begin
    a = [0.0, 1.0, 1.5, 2.0, 3.9, 4.0, 0.1, TINY, prevfloat(TINY), 2.0^-1000, 1e300, 1e-300, 7.0, 0.25, 0.75, 1 / 3]
    b = reverse(a)
    va, vb = lanes_of(a), lanes_of(b)
    @test numbers(LVDJuice.mul(va, vb)) == a .* b && numbers(LVDJuice.add(va, vb)) == a .+ b
    @test numbers(LVDJuice.max_lanes(va, vb)) == max.(a, b) && numbers(LVDJuice.splat(0.3)) == fill(0.3, LANES)
    @test numbers(LVDJuice.without_tiny(va)) == [x < TINY ? 0.0 : x for x in a] == LVDJuice.without_tiny.(a)
    exponents = [x == 0 ? Int(LVDJuice.EXPONENT_OF_ZERO) : exponent(x) for x in a]
    @test numbers(LVDJuice.floor_exponents(va)) == exponents == LVDJuice.double_exponent.(a)
    e = Int32[-2000, -1023, -1022, -1000, -1, 0, 1, 2, 3, 500, 1022, 1023, 1024, 5000, -500, -52]
    powers = [i < -1022 ? 0.0 : 2.0^min(i, 1023) for i in e]
    @test numbers(LVDJuice.powers(Float64, ntuple(i -> VecElement(e[i]), Val(LANES)))) == powers == LVDJuice.double_power.(e)
end

"Circuits of all kinds, with the numbers of their categories."
coded_circuits() = [
    (hclt([0, 1, 1, 2, 2, 5]; latents=3, categories=4, seed=1), 4),
    (hclt([0, 1, 2, 3, 4]; latents=4, categories=40, seed=2), 40),
    (mixture([hclt([0, 1, 1, 2, 2]; latents=2, categories=3, seed=3), hclt([2, 3, 4, 5, 0]; latents=3, categories=3, seed=4)], [0.3, 0.7]), 3),
    (rat_spn(; num_vars=6, depth=2, replicas=3, num_sums=2, num_inputs=3, num_cats=5, seed=5), 5),
    (fully_factorized(; num_vars=4, num_cats=3), 3),
    [(random_circuit(MersenneTwister(seed), 5, 3, 1), 3) for seed in 1:6]...,
]

@testset "tables are a circuit's conditionals" begin
    for (c, C) in coded_circuits()
        V = c.num_vars
        X = Int32.(rand(MersenneTwister(7), 0:C - 1, V, 37))  # neither one tile nor two
        coder = LVDJuice.circuit_coder(c)
        bits, tables = coded_bits(coder, X)
        @test tables == (C <= 32 ? V : 2V)
        p = [reference_values(c, X[:, n])[c.heads[1]] for n in axes(X, 2)]
        @test close_to(bits, -log2.(p); rtol=1e-5)
        @test sort(coder.channels[1][1].order) == 1:V
        # Decoding by the entries that encoding took gives the images back.
        job, taken = Coding(coder, X, false), Vector{Int}[]
        out = zeros(LVDJuice.widest_table(coder) * size(X, 2))
        while LVDJuice.next_table!(out, job, Int32[]) > 0
            LVDJuice.own_symbols!(job)
            push!(taken, copy(job.symbol))
        end
        steps = Iterators.Stateful(reduce(vcat, taken))
        @test decoded(_ -> popfirst!(steps) + 1, coder, size(X, 2)) == X
    end
end

@testset "variables of different numbers of categories" begin
    b, shares = LVDJuice.Builder(2), Float32.(1:40) ./ 820
    one = LVDJuice.add_inputs!(b, 1, Float32[0.2 0.3 0.5; 0.6 0.2 0.2])
    other = LVDJuice.add_inputs!(b, 2, permutedims([shares reverse(shares)]))
    products = [LVDJuice.add_product!(b, [one[i], other[i]]) for i in 1:2]
    c = Circuit(b, [LVDJuice.add_sum!(b, products, Float32[0.4, 0.6])])
    X = Int32[repeat(0:2, 40)'; repeat(0:39, 3)']
    @test close_to(coded_bits(LVDJuice.circuit_coder(c), X)[1], [-log2(reference_values(c, X[:, n])[c.heads[1]]) for n in axes(X, 2)])
end

@testset "a tree is gone through once each way" begin
    c = hclt([i ÷ 2 for i in 1:31]; latents=2, categories=2)
    plan = LVDJuice.circuit_coder(c).channels[1][1].plans[1]
    through = vcat(plan.steps..., plan.last)
    # An edge of the tree has two scopes, of what is below it and of the variable itself.
    @test count(way -> way.scope > 0, through) <= 2 * 31 && count(way -> way.scope < 0, through) <= 2 * 31
end

@testset "images without probability" begin
    c = hclt([0, 1, 2]; latents=2, categories=4)
    for u in 1:num_units(c)
        LVDJuice.isinput(c.kind[u]) || continue
        p = LVDJuice.probabilities(c, u)
        p[1:4] .= c.variable[u] == 2 ? [0, 0.5, 0.5, 0] : [0.25, 0.25, 0.25, 0.25]
    end
    bits, _ = coded_bits(LVDJuice.circuit_coder(c), [0 0; 0 1; 0 0])
    @test bits[1] > 20 && all(isfinite, bits)  # the floor of a table: 24 bits
    @test bits[1] - bits[2] > 20
    # A circuit that is 0 everywhere it is asked codes all values alike.
    out = zeros(4)
    LVDJuice.quantise!(out, zeros(4, 1), 4)
    @test sum(out) == 2^24 && maximum(out) - minimum(out) <= 1
end

@testset "processors that take subnormal numbers for 0 code alike" begin
    function tables(coder, X, zero)
        set_zero_subnormals(zero)
        job, out, found = Coding(coder, X, false), zeros(LVDJuice.widest_table(coder) * size(X, 2)), Float64[]
        while (m = LVDJuice.next_table!(out, job, Int32[])) > 0
            append!(found, out[1:m * size(X, 2)])
        end
        set_zero_subnormals(false)
        return found
    end
    c = hclt([i ÷ 2 for i in 1:40]; latents=3, categories=20, perturbation=0.99)
    for u in 1:num_units(c)  # parameters of all sizes, subnormal ones included
        LVDJuice.isinput(c.kind[u]) || continue
        p = LVDJuice.probabilities(c, u)
        p .= Float32.(2.0 .^ -(7 .* (0:19) .+ u % 3))
        p ./= sum(p)
    end
    X = rand(MersenneTwister(2), Int32.(0:19), 40, 5)
    coder = LVDJuice.circuit_coder(c)
    @test tables(coder, X, true) == tables(coder, X, false)
end

@testset "thousands of variables do not underflow" begin
    V = 3000
    c = hclt([i ÷ 2 for i in 1:V]; latents=2, categories=256)
    X = rand(MersenneTwister(1), 0:255, V, 2)
    bits, _ = coded_bits(LVDJuice.circuit_coder(c), X)
    found = zeros(1, 2)
    LVDJuice.log_likelihoods!(found, Plan(c), X, nothing, 0)
    @test close_to(bits, -vec(found) ./ log(2); rtol=1e-5)
end

@testset "a circuit that lacks a variable, or a head that does" begin
    c = hclt([0, 1]; latents=2, categories=3)
    wide = Circuit(3, (getfield(c, f) for f in (:kind, :variable, :categories, :param_start, :param_stride, :success, :child_start))...,
                   LVDJuice.all_children(c), c.weight, c.leaf, c.heads)
    @test_throws ArgumentError Layout(wide)
end

@testset "patches below p(h), with offsets and without" begin
    rng = MersenneTwister(3)
    S, J, C, step = 3, 3, 8, 2
    prior = hclt([0, 1, 1, 2]; latents=2, categories=S, seed=1)
    shapes = [[hclt([0, 1]; latents=2, categories=C, heads=heads, perturbation=0.9, seed=heads + 10c) for c in 1:2] for heads in (2, 1)]
    table(rows, columns) = (t = rand(rng, Float32, rows, columns); t ./ sum(t, dims=2))
    join, shift = table(S, J), table(S, C ÷ step)
    coder = LVDJuice.offset_coder(prior, [step, C], join, shift, ones(Float32, S, 1), shapes[1]..., shapes[2]...)
    X = rand(rng, 0:C - 1, 16, 20)  # 4 positions of 2 variables in 2 channels
    p = map(axes(X, 2)) do n
        e = map(1:4) do i
            x = reshape(X[4i - 3:4i, n], 2, 2)  # (channels, variables)
            heads(c, y) = reduce(vcat, [reference_values(own[c], y)[own[c].heads] for own in shapes])
            m1 = [sum(shift[h, d + 1] * heads(1, mod.(x[1, :] .- step * d, C))[j] for d in 0:C ÷ step - 1) for h in 1:S, j in 1:J]
            [sum(join[h, j] * m1[h, j] * heads(2, x[2, :])[j] for j in 1:J) for h in 1:S]
        end
        sum(reference_values(prior, h)[prior.heads[1]] * prod(e[i][h[i] + 1] for i in 1:4) for h in eachcol(assignments(4, S)))
    end
    @test close_to(coded_bits(LVDJuice.exact_coder(coder), X)[1], -log2.(p); rtol=1e-5)
    @test close_to(coded_bits(coder, X)[1], -log2.(p); rtol=5e-3)

    # A joint model, tied and not.
    circuits = [hclt([0, 1]; latents=2, categories=C, heads=heads, seed=heads) for heads in (2, 1)]
    X = rand(rng, 0:C - 1, 8, 20)
    for tied in (true, false)
        own(i) = tied || i == 1 ? circuits : [[hclt([2, 0]; latents=2, categories=C, heads=S, seed=i)] for i in 2:4][i - 1]
        all_circuits = tied ? circuits : reduce(vcat, own(i) for i in 1:4)
        p = map(axes(X, 2)) do n
            e = [reduce(vcat, [reference_values(c, X[2i - 1:2i, n])[c.heads] for c in own(i)]) for i in 1:4]
            sum(reference_values(prior, h)[prior.heads[1]] * prod(e[i][h[i] + 1] for i in 1:4) for h in eachcol(assignments(4, S)))
        end
        @test close_to(coded_bits(LVDJuice.joint_coder(prior, tied, all_circuits...), X)[1], -log2.(p); rtol=1e-5)
    end
end

@testset "patches below a field, of offsets by $steps" for steps in ((2, 4), (8, 8), (2, 8))
    rng = MersenneTwister(5)
    S, C, rows, columns = 3, 8, 3, 3
    D, group = C .÷ steps, [1, 1, 2]
    table(sizes...) = (t = rand(rng, Float32, sizes...) .^ 3; t ./ sum(t, dims=2))
    next_offsets = [[table(d, d, 2, 2) for d in D] for _ in 1:2]
    f = LVDJuice.Field(rows, columns, group, vec(table(1, S)), [table(S, d) for d in D], [table(S, S) for _ in 1:2], next_offsets)
    shapes = [[hclt([0, 1]; latents=2, categories=C, heads=heads, perturbation=0.9, seed=heads + 10c) for c in 1:2] for heads in (2, 1)]
    join = table(S, 3)
    coder = LVDJuice.field_coder(f, collect(steps), join, shapes[1]..., shapes[2]...)
    X = rand(rng, 0:C - 1, 4 * rows * columns, 8)

    # p(x) by the messages of both combs over all values of (s, d_1, d_2).
    all_values = [(s, d1, d2) for d2 in 1:D[2] for d1 in 1:D[1] for s in 1:S]
    first = [f.first[s] * f.first_offsets[1][s, d1] * f.first_offsets[2][s, d2] for (s, d1, d2) in all_values]
    edge(a, h, h2) = f.next[a][h[1], h2[1]] * prod(next_offsets[a][c][h[c + 1], h2[c + 1], group[h[1]], group[h2[1]]] for c in 1:2)
    steps_to = [[edge(a, h, h2) for h in all_values, h2 in all_values] for a in 1:2]
    p = map(axes(X, 2)) do n
        e = map(1:rows * columns) do i
            x = reshape(X[4i - 3:4i, n], 2, 2)
            heads(c, y) = reduce(vcat, [reference_values(own[c], y)[own[c].heads] for own in shapes])
            own = [[heads(c, mod.(x[c, :] .- steps[c] * (d - 1), C)) for d in 1:D[c]] for c in 1:2]
            [sum(join[s, :] .* own[1][d1] .* own[2][d2]) for (s, d1, d2) in all_values]
        end
        sum(LVDJuice.combs(f)) do (parent, direction)
            below = deepcopy(e)
            for i in rows * columns:-1:2
                below[parent[i]] .*= steps_to[direction[i]] * below[i]
            end
            sum(first .* below[1]) / 2
        end
    end
    found = coded_bits(LVDJuice.exact_coder(coder), X)[1]
    @test close_to(found, -log2.(p); rtol=1e-5)
    @test close_to(coded_bits(coder, X)[1], found; rtol=5e-3)

    # What a patch left of its joins, and of (s, d), says nothing of the next one.
    job, fresh = Coding(coder, Matrix{Int32}(X), false), Coding(coder, Matrix{Int32}(X), false)
    for patch in job.patch
        patch.said, patch.nothing_said = zeros(S, 1), false
    end
    tables = map((job, fresh)) do each
        out = zeros(LVDJuice.widest_table(coder) * size(X, 2))
        LVDJuice.next_table!(out, each, Int32[])
        out
    end
    @test tables[1] == tables[2]
end

@testset "sums over a channel's values have one order, however wide registers are" begin
    circuits = [hclt([0, 1, 1]; latents=4, categories=256, heads=3, seed=seed) for seed in 1:2]
    channel = CodingChannel(circuits, 16, fill(Float32(1 / 16), 2, 16))
    @test size(channel.anchor) == (16, 16, 6)
    @test channel.anchor_mass == [foldl(+, channel.anchor[:, g, j]) for g in 1:16, j in 1:6]
end

@testset "the least of the shares is left out" begin
    shares = [0.5, 0.25, 0.15, 0.05, 0.03, 0.015, 0.005, 2.0^-25]
    left(left_out, most=8) = sum(shares[shares .< LVDJuice.least_share(shares, sum(shares), left_out, most)])
    @test left(0.0) == 2.0^-25
    @test all(left(x) <= x for x in (0.01, 0.03, 0.1, 0.3)) && left(0.03) >= 0.02
    @test count(>=(LVDJuice.least_share(shares, sum(shares), 0.0, 3)), shares) == 3
    @test LVDJuice.least_share(zeros(4), 0.0, 0.1, 2) == 0
    @test LVDJuice.least_share(fill(0.25, 4), 1.0, 0.1, 2) <= 0.25  # not all of them
end

@testset "rows that lose their share go, and the others are as they were" begin
    C, step, V = 16, 2, 9
    pattern(k, v) = v == 1 ? 0 : k * v % 5  # of a shape's residuals
    shapes = map(1:3) do k
        c = hclt([0; 1:V - 1]; latents=2, categories=C, heads=2, perturbation=0.9, seed=k)
        for u in 1:num_units(c)
            LVDJuice.isinput(c.kind[u]) || continue
            p = LVDJuice.probabilities(c, u)
            p .= 0.01f0 / C
            p[pattern(k, c.variable[u]) + 1] += 0.99f0
        end
        c
    end
    table(rows, columns) = fill(Float32(1 / columns), rows, columns)
    prior = hclt([0]; latents=1, categories=2, seed=1)
    coder = LVDJuice.offset_coder(prior, [step], table(2, 6), table(2, C ÷ step), shapes...)
    rng = MersenneTwister(1)
    X = reduce(hcat, [mod.(pattern.(rand(rng, 1:3), 1:V) .+ rand(rng, 0:2:C - 1), C) for _ in 1:100])
    job, out, rows = Coding(coder, Matrix{Int32}(X), false), zeros(LVDJuice.widest_table(coder) * 100), Int[]
    while LVDJuice.next_table!(out, job, Int32[]) > 0
        job.fine || push!(rows, sum(of -> length(of.image), LVDJuice.rows(job)))
    end
    @test rows[2] > 1000 && rows[end] == 100  # the shape and the offset of each image
    @test close_to(coded_bits(coder, X)[1], coded_bits(LVDJuice.exact_coder(coder), X)[1]; rtol=5e-3)
end
