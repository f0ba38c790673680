"The circuit that `text`, as a `.jpc` file, says; and the file that a circuit is written as."
parse_jpc(text) = mktemp() do path, io
    write(io, text)
    close(io)
    read_jpc(path)
end

jpc_text(c) = mktemp() do path, io
    close(io)
    write_jpc(path, c)
    read(path, String)
end

const GOLDEN = """
    c Juice probabilistic circuit, by lvd-juice
    c heads 9 10
    jpc 12
    C 0 0 1 -0.6931472 -1.3862944 -1.3862944
    I 1 0 1 2
    L 2 0 -2
    L 3 0 2
    B 4 0 3 2 -0.6931472
    P 5 0 3 0 2 4
    P 6 0 3 1 3 4
    P 7 0 2 0 3
    P 8 0 2 7 4
    S 9 0 2 5 -0.2876821 6 -1.3862944
    S 10 0 3 5 -0.6931472 6 -1.3862944 8 -1.3862944
    S 11 0 2 9 -0.6931472 10 -0.6931472
    """

@testset "a file by hand: its probabilities, and its bytes" begin
    c = parse_jpc(GOLDEN)
    @test (c.num_vars, LVDJuice.num_units(c), c.heads) == (3, 11, [10, 11])
    X = [x for x in Iterators.product(0:2, 0:1, 0:2)]
    first_var, trials = [0.5, 0.25, 0.25], [0.25, 0.5, 0.25]
    for x in X
        a = first_var[x[1] + 1] * (x[2] == 0) * trials[x[3] + 1]
        b = (x[1] == 2) * (x[2] == 1) * trials[x[3] + 1]
        d = first_var[x[1] + 1] * (x[2] == 1) * trials[x[3] + 1]
        p = vec(exp.(log_likelihood(c, reshape(collect(x), 3, 1))))
        @test p ≈ [0.75a + 0.25b, 0.5a + 0.25b + 0.25d] rtol=1e-6
    end
    @test jpc_text(c) == GOLDEN
end

@testset "what the format allows, but is not written" begin
    # Comments and blank lines anywhere, CRLF, tabs, exponents, other vtree ids, -Inf, weights a little off.
    loose = """
        c a comment\r
        c\r

        jpc   4
        \t C 0 7 1 -6.931472e-1  -Inf -0.69314718055994530942\r
        c in between
        C 1 3 1 -Inf -0.6936 -0.6936
          I 2 0 1 0
        S 3 9 3 0 -1.38629436 1 -0.28748 2 -inf
        """
    c = parse_jpc(loose)
    @test c.categories[1:3] == [3, 3, 3]  # the indicator has as many as its variable
    @test c.leaf[range(c.param_start[1], step=c.param_stride[1], length=3)] == [0.5, 0, 0.5]
    @test c.leaf[range(c.param_start[2], step=c.param_stride[2], length=3)] ≈ [0, 0.5, 0.5]  # normalised
    @test LVDJuice.children(c, 4) == [1, 2]
    @test sum(c.weight) ≈ 1
    @test c.weight[1] ≈ 0.25 rtol=1e-3
    # The inputs of one variable, apart in the file, lie side by side in one table of each kind.
    @test c.param_stride[1:3] == [2, 2, 1] && c.param_start[2] == c.param_start[1] + 1
    # A shorter categorical is impossible beyond its end.
    c = parse_jpc("jpc 3\nC 0 0 1 0\nC 1 0 1 -0.6931472 -0.6931472\nS 2 0 2 0 -0.6931472 1 -0.6931472\n")
    @test vec(exp.(log_likelihood(c, [0 1]))) ≈ [0.75, 0.25]
    # No line end at the end of the file; a circuit that is one input.
    @test parse_jpc("jpc 1\nB 0 0 2 3 -0.5").success == [exp(-0.5f0)]
    @test parse_jpc("jpc 1\nB 0 0 2 3 -0.5").num_vars == 2
    # A byte order mark, comments without a space, Julia's Float32 literals, logarithms of two digits.
    c = parse_jpc("\ufeffcircuit\njpc 3\nL 0 0 1\nL 1 0 -1\nS 2 0 2 0 -0.69 1 -6.9f-1\n")
    @test c.weight == [0.5, 0.5]
    # A category that a Float32 cannot hold is not impossible; an edge is as good as none.
    c = parse_jpc("jpc 2\nC 0 0 1 0.0 -110.0\nS 1 0 2 0 0.0 0 -110.0\n")
    @test c.leaf[2] == nextfloat(0f0) && c.weight == [1]
end

same_values(a, b) = all(isapprox.(a, b; rtol=1e-6, atol=1e-6) .| (a .== b))

@testset "written and read again" begin
    rng = MersenneTwister(21)
    for trial in 1:60
        V, C, heads = rand(rng, 1:5), rand(rng, 2:3), rand(rng, 1:3)
        c = random_circuit(rng, V, C, heads)
        if rand(rng, Bool)  # some edges of weight 0: they are left out
            for u in eachindex(c.kind)
                range = LVDJuice.edges(c, u)
                c.kind[u] == LVDJuice.SUM && length(range) > 2 || continue
                c.weight[first(range) + 1] = 0
                c.weight[range] ./= sum(c.weight[range])
            end
        end
        text = jpc_text(c)
        again = parse_jpc(text)
        X = assignments(V, C)
        @test same_values(log_likelihood(c, X), log_likelihood(again, X))
        @test (again.kind, again.variable, again.categories, again.heads) == (c.kind, c.variable, c.categories, c.heads)
        @test LVDJuice.num_edges(again) == count(>(0), c.weight)
        same = jpc_text(again) == text  # apart from @test, which would print them
        @test same
        @test !occursin("Inf", text) && !occursin("  ", text) && !occursin(" \n", text) && endswith(text, "\n")
    end
end

@testset "trained circuits keep their likelihoods, blocks and bytes" begin
    rng = MersenneTwister(22)
    X = rand(rng, 0:3, 8, 300)
    X[2, :] .= X[1, :]
    dense(plan) = count(LVDJuice.isdense(b) for g in plan.groups for b in g.blocks)
    for c in (hclt([0, 1, 2, 3, 4, 1, 1, 7]; latents=6, categories=4, heads=2),
              rat_spn(num_vars=8, depth=2, replicas=3, num_sums=4, num_inputs=5, num_cats=4, heads=2))
        finish!(EMJob(c, X, rand(rng, 1:2, 300); epochs=30, batch_size=50, pseudocount=0.01))
        again = parse_jpc(jpc_text(c))
        @test log_likelihood(again, X) ≈ log_likelihood(c, X) rtol=1e-6
        same = jpc_text(again) == jpc_text(c)
        @test same
        @test length(Plan(again).groups) == length(Plan(c).groups) && dense(Plan(again)) == dense(Plan(c)) > 0
    end
end

@testset "heads" begin
    b = LVDJuice.Builder(1)
    units = LVDJuice.add_inputs!(b, 1, Float32[0.25 0.75; 0.5 0.5; 1 0])
    # One head that is not the last unit; twice the same; the last unit and another.
    for heads in ([2], [1, 1], [3, 1], [3])
        c = Circuit(b, heads)
        text = jpc_text(c)
        @test occursin("c heads", text) == (heads != [3])
        @test parse_jpc(text).heads == heads
        @test jpc_text(parse_jpc(text)) == text
    end
    @test occursin("\nS 3 0 2 2 -0.6931472 0 -0.6931472\n", jpc_text(Circuit(b, [3, 1])))
    # An impossible category is written as the smallest number above 0.
    @test occursin("C 2 0 1 0.0 -103.27893\n", jpc_text(Circuit(b, [3])))
    # Prior weights are kept; a head of weight 0 has no edge. Readers go by the header's order, wherever it stands.
    c = Circuit(b, [3, 1, 2], [0.9f0, 0.1f0, 0f0])
    @test occursin("\nS 3 0 2 2 -0.105360545 0 -2.3025851\n", jpc_text(c))
    @test parse_jpc(jpc_text(c)).head_weight ≈ [0.9, 0.1, 0] rtol=1e-6
    @test jpc_text(parse_jpc(jpc_text(c))) == jpc_text(c)
    found = parse_jpc("jpc 3\nc heads 0 1\nL 0 0 1\nL 1 0 -1\nS 2 0 2 1 -0.10536052 0 -2.3025851\n")
    @test found.heads == [1, 2]
    @test found.head_weight ≈ [0.1, 0.9] rtol=1e-6
    # Without the header's line, the mixture is the circuit.
    text = join(filter(line -> !startswith(line, "c"), split(jpc_text(Circuit(b, [3, 1])), '\n')), '\n')
    @test vec(exp.(log_likelihood(parse_jpc(text), [0 1]))) ≈ [0.625, 0.375]
end

@testset "lines about a circuit, and a file written in pieces" begin
    c = hclt([0, 1, 2, 3, 4]; latents=16, categories=2, heads=2)
    mktempdir() do folder
        path = joinpath(folder, "model.jpc")
        write_jpc(path, c; about="p(x), of this\n\nand that\n")
        whole = read(path, String)
        @test split(whole, '\n')[2:4] == ["c p(x), of this", "c and that", "c heads 208 209"]
        @test read_jpc(path).weight ≈ c.weight
        writer, pieces = LVDJuice.JpcWriter(path, c, "p(x), of this\nand that"), Int[]
        while isempty(pieces) || pieces[end] < LVDJuice.num_units(c)
            push!(pieces, advance!(writer, 0))
        end
        @test pieces == [64, 128, 192, 210]
        same = read(path, String) == whole
        @test same
        # As many units as pieces hold: the mixture of the heads is there too.
        b = LVDJuice.Builder(1)
        LVDJuice.add_inputs!(b, 1, fill(0.5f0, 64, 2))
        @test advance!(LVDJuice.JpcWriter(path, Circuit(b, [1, 64]), ""), 0) == 64
        @test read_jpc(path).heads == [1, 64]
        @test occursin("a line that begins with `heads`", message_of(() -> write_jpc(path, c; about="first\nheads 1")))
    end
end

@testset "decimals give back the same Float32, and every file is a fixed point" begin
    rng = LVDJuice.SplitMix(23)
    probabilities = [Float32(LVDJuice.uniform!(rng)^(1 + 8 * LVDJuice.uniform!(rng))) for _ in 1:20_000]
    logs = LVDJuice.log_parameter.(probabilities)
    @test parse.(Float32, string.(logs)) == logs
    @test LVDJuice.log_parameter.(Float32.(exp.(Float64.(logs)))) == logs
end

@testset "bad files are refused with the line and the reason" begin
    header, inputs = "jpc 4\n", "C 0 0 1 -0.6931472 -0.6931472\nC 1 0 1 -0.6931472 -0.6931472\n"
    for (text, reason) in (
        ("", "found no line `jpc COUNT`"),
        ("c only comments\n", "found no line `jpc COUNT`"),
        ("\x89PNG\r\n\x1a\n\0\0", "line 1: found"),
        ("jpc\n", "line 1: found \"jpc\", wanted `jpc COUNT`"),
        ("jpc many\n", "line 1: found \"many\" for the number of units, wanted an integer"),
        ("jpc -1\n", "line 1: found -1 for the number of units"),
        ("jpc 99999999999999999999\n", "line 1: found \"99999999999999999999\""),
        ("jpc 0\n", "a circuit without units"),
        (header * inputs, "the file ends after 2 of 4 units"),
        ("jpc 1000000000000\n" * inputs, "the file ends after 2 of 1000000000000 units"),
        (header * "D 0 0 1\n", "line 2: found \"D\", wanted a unit"),
        (header * "C 0 0\n", "line 2: found 3 fields, wanted 5 or more"),
        (header * "C 0 0 1\n", "line 2: found 4 fields, wanted 5 or more"),
        (header * "C 1 0 1 0.0\n", "line 2: found unit 1, wanted unit 0"),
        (header * inputs * "C 1 0 1 0.0\n", "line 4: found unit 1, wanted unit 2"),
        ("jpc 1\n" * inputs, "line 3: found unit 1, `jpc` announced 1"),
        (header * "C 0 0 0 0.0\n", "line 2: found 0 for a variable"),
        (header * "C 0 0 99999999999 0.0\n", "line 2: found 99999999999 for a variable"),
        (header * "C 0 0 999999999 0.0\n", "line 2: found 999999999 for a variable"),
        (header * "L 0 0 0\n", "line 2: unit 0: the literal 0"),
        (header * "L 0 0 -999999999\n", "line 2: found -999999999 for a literal"),
        (header * "L 0 0 1 2\n", "line 2: unit 0: found 5 fields"),
        (header * "I 0 0 1 -1\n", "line 2: found -1 for a category"),
        (header * "I 0 0 1 1.5\n", "line 2: found \"1.5\" for a category"),
        ("jpc 1\nI 0 0 1 999999999\n", "line 2: unit 0: 1000000000 categories are more than a file of 24 bytes may"),
        ("jpc 1\nB 0 0 1 999999999 -0.5\n", "line 2: unit 0: 1000000000 categories are more than"),
        ("jpc 1\nB 0 0 1 3 0.5\n", "line 2: unit 0: the probability of success is 1.64"),
        ("jpc 1\nB 0 0 1 -3 -0.5\n", "line 2: found -3 for a number of trials"),
        ("jpc 2\nB 0 0 1 3 -0.5\nI 1 0 1 4\n", "line 2: unit 0: variable 1 has 4 categories here, 5 elsewhere"),
        ("jpc 2\nC 0 0 1 -1.0986123 -1.0986123 -1.0986123\nL 1 0 1\n",
         "line 3: unit 1: variable 1 has 2 categories here, 3 elsewhere"),
        (header * "C 0 0 1 -0.6931472 -0.7931472\n", "line 2: unit 0: its parameters sum to 0.95"),
        (header * "C 0 0 1 -Inf\n", "line 2: unit 0: its parameters sum to 0.0"),
        (header * "C 0 0 1 NaN\n", "line 2: unit 0: found \"NaN\", wanted a logarithm"),
        (header * "C 0 0 1 Inf\n", "line 2: unit 0: found \"Inf\", wanted a logarithm"),
        (header * "C 0 0 1 0,0\n", "line 2: unit 0: found \"0,0\", wanted a logarithm"),
        (header * inputs * "S 2 0 2 0 -0.6931472 1 -0.8\n", "line 4: unit 2: its parameters sum to 0.94"),
        (header * inputs * "S 2 0 1 0 -Inf\n", "line 4: unit 2: its parameters sum to 0.0"),
        (header * inputs * "S 2 0 2 0 -0.6931472\n", "line 4: unit 2: announces 2 children: found 2 fields"),
        (header * inputs * "S 2 0 2 0 -0.6931472 1\n", "line 4: unit 2: announces 2 children: found 3 fields"),
        (header * inputs * "S 2 0 999999999999 0 0.0\n", "line 4: found 999999999999 for the number of children"),
        (header * inputs * "S 2 0 1 2 0.0\n", "line 4: found 2 for a child, wanted 0..1"),
        (header * inputs * "S 2 0 1 3 0.0\n", "line 4: found 3 for a child, wanted 0..1"),
        (header * inputs * "P 2 0 0\n", "line 4: found 0 for the number of children"),
        (header * inputs * "P 2 0 2 0\n", "line 4: unit 2: announces 2 children: found 1 fields"),
        (header * inputs * "P 2 0 1 -1\n", "line 4: found -1 for a child"),
        (header * "P 0 0 1 0\n", "line 2: unit 0: no units come before it that could be its children"),
        ("c heads 0\njpc 2\n" * inputs, "line 1: the heads are not the children of the last unit"),
        ("c heads 0\njpc 3\n" * inputs * "S 2 0 2 0 -0.6931472 1 -0.6931472\n", "line 1: the heads are not the children"),
        ("c heads 0 1\njpc 3\n" * inputs * "P 2 0 2 0 1\n", "line 1: the heads are not the children"),
        ("c heads 0 x\njpc 2\n" * inputs, "line 1: found \"x\" for a head"),
        ("c heads 0\nc heads 1\njpc 2\n" * inputs, "line 2: the heads are named twice"),
    )
        message = message_of(() -> parse_jpc(text))
        @test occursin(reason, message)
        @test startswith(message, "ArgumentError: ") && !occursin('\n', message)
    end
    # Structure that no line shows is the plan's to refuse.
    @test occursin("unit 2: a product over overlapping scopes",
                   message_of(() -> Plan(parse_jpc("jpc 3\n" * inputs * "P 2 0 2 0 1\n"))))
end

@testset "a file cut off anywhere, or with a byte changed, is an error or a circuit" begin
    rng = MersenneTwister(24)
    bytes = Vector{UInt8}(GOLDEN)
    for cut in 1:length(bytes) - 7  # with two digits left of the last logarithm or more, it is the same circuit
        message = message_of(() -> parse_jpc(view(bytes, 1:cut)))
        @test startswith(message, "ArgumentError: ")
    end
    for _ in 1:2000
        changed = copy(bytes)
        changed[rand(rng, 1:end)] = rand(rng, UInt8)
        message = message_of(() -> parse_jpc(changed))
        @test message == "" || startswith(message, "ArgumentError: ")
    end
end

@testset "a file's claims allocate nothing" begin
    parse_jpc(GOLDEN)
    message_of(() -> parse_jpc("jpc 1\nI 0 0 1 999999999\n"))  # compiled
    for text in ("jpc 1000000000000\n", "jpc 1\nI 0 0 1 999999999\n", "jpc 1\nB 0 0 1 999999999 -1\n",
                 "jpc 2\nL 0 0 1\nP 1 0 999999999 0\n", "jpc 2\nL 0 0 1\nS 1 0 2147483647 0 0\n", "jpc 1\nC 0 0 99999999 0\n")
        @test (@allocated message_of(() -> parse_jpc(text))) < 2^23
    end
end

@testset "decimals are read as the nearest Float32" begin
    rng = MersenneTwister(25)
    nearest(text) = (f = LVDJuice.Fields(Vector{UInt8}(text), 1, sizeof(text)); LVDJuice.simple_float(f, LVDJuice.next_field!(f)))
    sure = 0
    for _ in 1:20_000
        x = reinterpret(Float32, rand(rng, UInt32))
        isfinite(x) || continue
        middle = (BigFloat(x) + BigFloat(nextfloat(x))) / 2
        digits = string(Float64(middle))  # where rounding twice goes wrong, if anywhere
        for text in (string(x), string(Float64(x)), digits, string(round(Float64(x); sigdigits=rand(rng, 1:9))), string(rand(rng) * -20),
                     string(Float32(-20 * rand(rng))))
            found = nearest(text)
            found === nothing && continue
            sure += 1
            found === parse(Float32, text) || @test found === parse(Float32, text)
        end
    end
    @test sure > 20_000
    @test (nearest("0.0"), nearest("-0.0"), nearest("17"), nearest("1e5"), nearest("-1.5E-3"), nearest("2.5f-1")) ===
          (0f0, -0f0, 17f0, 1f5, -1.5f-3, 0.25f0)
    for text in ("", "-", ".", "1e", "1e-", "1e+5", "1e100", "Inf", "NaN", "0x10", "1_0", "1.2.3", "--1", "1e5.5", "1234567890123456")
        @test nearest(text) === nothing
    end
end

@testset "lines in pieces of any size" begin
    for size in (1, 3, 17, 1000)
        reader = LVDJuice.JpcReader(sizeof(GOLDEN))
        for part in Iterators.partition(collect(codeunits(GOLDEN)), size)
            LVDJuice.read_piece!(reader, part)
        end
        same = jpc_text(LVDJuice.finish!(reader)) == GOLDEN
        @test same
    end
end
