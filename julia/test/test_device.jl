# The device engine, on Julia's own arrays and on arrays whose numbers cannot be looked at one by one: nothing falls back to the host.

include("remote.jl")

const DEVICES = Any[Device(), Device(a -> Remote(copy(a)))]
if Base.find_package("JLArrays") !== nothing  # arrays that are tested like a GPU's, by KernelAbstractions.jl; minutes
    @eval import JLArrays
    JLArrays.allowscalar(false)
    push!(DEVICES, Device(JLArrays.JLArray))
end

"Dense and sparse circuits, with pairs of units, shared units, several heads, sums over several groups, and inputs of all kinds."
function device_circuits(rng, trial)
    V, C, heads = rand(rng, 2:6), rand(rng, 2:3), rand(rng, 1:3)
    trial % 5 == 0 && return einet(num_vars=V, depth=2, replicas=2, num_sums=rand(rng, 2:5), num_cats=C, heads=heads, perturbation=0.9,
                                   seed=trial), V, C
    trial % 3 == 0 && return random_circuit(rng, V, C, heads), V, C
    c = hclt([i == 1 ? 0 : rand(rng, 1:i - 1) for i in 1:V]; latents=rand(rng, 1:20), categories=C, heads=heads, seed=trial)
    trial % 3 == 1 && return c, V, C
    X = rand(rng, 0:C - 1, V, 60)
    return prune(c, X, rand(rng, 1:heads, 60); keep=0.4), V, C
end

@testset "device: likelihoods of random circuits, complete and masked, as the CPU has them" begin
    rng = MersenneTwister(60)
    for trial in 1:24, device in DEVICES
        c, V, C = device_circuits(rng, trial)
        X = assignments(V, C)
        for data in (X, UInt8.(X), Masked(X, rand(rng, Bool, size(X))))
            wanted, found = log_likelihood(c, data), log_likelihood(engine(c, device), data)
            @test isfinite.(found) == isfinite.(wanted)
            @test close_to(exp.(found), exp.(wanted))
        end
        values, scale = zeros(Float32, num_heads(c), size(X, 2)), zeros(size(X, 2))
        LVDJuice.certain_head_values!(values, scale, engine(c, device), X)
        @test close_to(values .* exp.(scale'), exp.(log_likelihood(c, X)))
    end
end

@testset "device: launches are by levels and shapes, however many groups there are" begin
    device = Device(a -> Remote(copy(a)))
    function launches(make, depth)
        c = make(2^depth - 1)
        X, before = zeros(UInt8, c.num_vars, 8), WORK[]
        accumulate!(engine(c, device), X, LVDJuice.Sources(ones(Int32, 8)), 1:8, 1:8)
        return WORK[] - before
    end
    tree(V) = hclt([i ÷ 2 for i in 1:V]; latents=3, categories=2)
    thinned(V) = prune(tree(V), rand(MersenneTwister(V), 0:1, V, 50), ones(Int, 50); keep=0.6)
    for make in (tree, thinned)
        counts = [launches(make, depth) for depth in 3:8]  # 7 to 255 variables
        @test counts[end] <= counts[1] + 5 * 30            # of a level of products and one of sums
    end
    counts = [launches(tree, depth) for depth in 3:6]
    @test counts[4] - counts[3] == counts[3] - counts[2]
    pairs(V) = einet(num_vars=V + 1, depth=3, replicas=V ÷ 3, num_sums=3, num_cats=2)
    @test launches(pairs, 5) <= 2 * launches(pairs, 4)
    c = hclt([0, 1, 1]; latents=2, categories=2, heads=2)  # a shared group: its flows come from both heads, one batch after the other
    groups = LVDJuice.Schedule(c).groups
    drafts = LVDJuice.Draft[]
    for gi in findall(g -> !isempty(g.blocks), groups)
        LVDJuice.add_to!(drafts, groups, gi, groups[gi].blocks[1], 100)
        LVDJuice.add_to!(drafts, groups, gi, groups[gi].blocks[1], 100)
    end
    @test all(d -> allunique([group for (_, b) in d.members for group in LVDJuice.read_groups(groups, b)]), drafts)
    @test sum(d -> length(d.members), drafts) == 2 * count(g -> !isempty(g.blocks), groups)
end

@testset "device: passes are as large as what they are for, and no larger" begin
    X = rand(MersenneTwister(66), 0:3, 5, 3000)
    for device in DEVICES
        c = hclt([0, 1, 1, 2, 2]; latents=3, categories=4)
        e = engine(c, device)
        for count in (3000, 100, 3, 700, 3000)
            @test log_likelihood(e, X[:, 1:count]) ≈ log_likelihood(c, X[:, 1:count]) rtol=1e-5
            @test count <= e.rows < 4 * max(count, LVDJuice.TILE)
        end
        @test LVDJuice.samples_at_once(e) >= 3000
    end
end

@testset "device: flows of random circuits, from several heads, weighted" begin
    rng = MersenneTwister(61)
    for trial in 1:24, device in DEVICES
        c, V, C = device_circuits(rng, trial)
        X = assignments(V, C)
        N = size(X, 2)
        head_of, weights = rand(rng, 1:num_heads(c), N), rand(rng, Float32, N)
        job = LVDJuice.FlowJob(engine(c, device), X, head_of; weights=weights)
        LVDJuice.advance!(job)
        units, edges = LVDJuice.unit_flows(job)
        wanted_units, wanted_edges = flows(c, X, head_of; weights=weights)
        @test isapprox(units, wanted_units; rtol=1e-5, atol=1e-6)
        @test isapprox(edges, wanted_edges; rtol=1e-5, atol=1e-6)
    end
end

@testset "device: EM is the CPU's, with values missing or not, in batches, beyond what single precision adds up, and with counts from elsewhere" begin
    rng = MersenneTwister(62)
    for trial in 1:15, device in DEVICES, pseudocount in (0.0, 0.3)
        c, V, C = device_circuits(rng, trial)
        other = twin(c)
        X, head_of, weights = rand(rng, 0:C - 1, V, 150), rand(rng, 1:num_heads(c), 150), rand(rng, Float32, 150)
        data = trial % 2 == 0 ? X : Masked(X, rand(rng, Bool, V, 150))
        for (own, backend) in ((c, CPU()), (other, device))
            finish!(EMJob(own, data, head_of; weights=weights, epochs=2, batch_size=64, step_size=(0.8, 0.3), pseudocount=pseudocount,
                          backend=backend))
        end
        @test same_parameters(c, other)
    end
    for device in DEVICES  # what is done exactly is learned from, too
        c = sharpen!(MersenneTwister(1), hclt([i ÷ 2 for i in 1:5]; latents=4, categories=3, heads=2, seed=1), 100)
        other, X = twin(c), assignments(5, 3)
        e = engine(other, device)
        sources = LVDJuice.Sources(ones(Int32, size(X, 2)))
        _, uncertain = accumulate!(e, X, sources, 1:size(X, 2), 1:size(X, 2))
        @test length(uncertain) > 10
        for (own, backend) in ((c, CPU()), (other, device))
            finish!(EMJob(own, X, ones(Int, size(X, 2)); epochs=2, batch_size=60, step_size=(0.8, 0.3), pseudocount=0.1, backend=backend))
        end
        @test same_parameters(c, other; rtol=1e-3)
    end
    for device in DEVICES
        make() = hclt([0, 1, 1, 2]; latents=5, categories=4, heads=2, seed=3)
        X, head_of = rand(rng, 0:3, 4, 20_000), rand(rng, 1:2, 20_000)
        wanted, found, shared = make(), make(), make()
        settings = (epochs=1, batch_size=20_000, step_size=(0.7, 0.7), pseudocount=0.1)
        finish!(EMJob(wanted, X, head_of; settings...))
        finish!(EMJob(found, X, head_of; settings..., backend=device))
        @test same_parameters(found, wanted)
        counts = ExpectedCounts(shared)
        jobs = [EMJob(shared, X[:, part], head_of[part]; settings..., backend=device) for part in (1:7_000, 7_001:20_000)]
        foreach(expect!, jobs)
        foreach(job -> counts!(counts, job), jobs)
        maximise!(jobs[1], counts)
        @test same_parameters(shared, wanted)
        @test log_likelihood(jobs[1].engine, X[:, 1:50]) ≈ log_likelihood(wanted, X[:, 1:50]) rtol=1e-4
    end
end

@testset "device: thousands of nats, and what underflow takes is done exactly" begin
    rng = MersenneTwister(63)
    for device in DEVICES
        c = hclt([i == 1 ? 0 : i ÷ 2 for i in 1:400]; latents=6, categories=256, seed=1)
        X = rand(rng, UInt8, 400, 70)
        exact = reduce(hcat, [LVDJuice.log_values(c, X, n)[c.heads] for n in axes(X, 2)])
        @test maximum(exact) < -1000
        @test log_likelihood(engine(c, device), X) ≈ exact rtol=1e-7
    end
    for trial in 1:30, device in DEVICES
        V, C, heads = rand(rng, 2:6), rand(rng, 2:3), rand(rng, 1:2)
        c = sharpen!(rng, random_circuit(rng, V, C, heads), rand(rng, (5, 20, 30)))
        X = assignments(V, C)
        exact = reduce(hcat, [LVDJuice.log_values(c, X, n)[c.heads] for n in axes(X, 2)])
        found = log_likelihood(engine(c, device), X)
        @test isfinite.(found) == isfinite.(exact)
        @test same_nats(found[isfinite.(exact)], exact[isfinite.(exact)])
    end
    c = fully_factorized(num_vars=3, num_cats=2)
    c.leaf .= [0.5, 0.5, 1, 0, 0.25, 0.75]
    X = zeros(Int, 3, 1000)
    X[2, 400] = 1  # impossible
    for device in DEVICES
        e = engine(c, device)
        total, uncertain = accumulate!(e, X, LVDJuice.Sources(ones(Int32, 1000)), 1:1000, 1:1000)
        @test uncertain == [400]
        @test total ≈ 999 * (log(0.5) + log(0.25)) rtol=1e-6
        @test add_exact!(e, X, LVDJuice.Sources(ones(Int32, 1000)), 1:1000, 1:1000, uncertain) == (-Inf, [400])
    end
end

@testset "device: a unit with next to no flow keeps its parameters" begin
    for device in DEVICES
        c = hclt([0, 1]; latents=2, categories=3)
        before = twin(c)
        finish!(EMJob(c, ones(Int, 2, 40), ones(Int, 40); weights=fill(1f-20, 40), epochs=1, batch_size=40, step_size=(1.0, 1.0), pseudocount=0,
                      backend=device))
        wanted = twin(before)
        finish!(EMJob(wanted, ones(Int, 2, 40), ones(Int, 40); weights=fill(1f-20, 40), epochs=1, batch_size=40, step_size=(1.0, 1.0), pseudocount=0))
        @test same_parameters(c, wanted)
        @test all(isfinite, c.weight) && all(isfinite, c.leaf)
    end
end

"Scores of soft evidence, some of which exclude a category."
function random_scores(rng, C, V, N)
    scores = randn(rng, Float32, C, V, N) .* 3 .- 5
    scores[rand(rng, C, V, N) .< 0.2] .= -Inf32
    scores[1, :, :] .= -4
    return scores
end

@testset "device: soft evidence: likelihoods, posteriors and EM are the CPU's" begin
    rng = MersenneTwister(64)
    for trial in 1:15, device in DEVICES
        c, V, C = device_circuits(rng, trial)
        scores = random_scores(rng, C, V, 90)
        wanted, found = log_likelihood(c, SoftEvidence(copy(scores))), log_likelihood(engine(c, device; soft=true), SoftEvidence(copy(scores)))
        @test found ≈ wanted rtol = 1e-5
        head_of = Int32.(rand(rng, 1:num_heads(c), 90))
        own = map((CPU(), device)) do backend
            posterior, e = zeros(Float32, C, V, 90), engine(c, backend; soft=true)
            total = LVDJuice.accumulate_posterior!(posterior, e, SoftEvidence(copy(scores)), head_of)
            return posterior, total, counts!(ExpectedCounts(c), e)
        end
        @test isapprox(own[2][1], own[1][1]; atol=1e-5)
        @test own[2][2] ≈ own[1][2] rtol = 1e-6
        @test isapprox(own[2][3].weight, own[1][3].weight; rtol=1e-4, atol=1e-5)
        @test isapprox(own[2][3].leaf, own[1][3].leaf; rtol=1e-4, atol=1e-5)
        other = twin(c)
        for (model, backend) in ((c, CPU()), (other, device))
            finish!(EMJob(model, SoftEvidence(copy(scores)), head_of; epochs=2, batch_size=40, step_size=(0.8, 0.3), pseudocount=0.2,
                          backend=backend))
        end
        @test same_parameters(c, other)
    end
    c = hclt([0, 1]; latents=2, categories=3)
    for device in DEVICES  # evidence that nothing allows, and such as the arithmetic does not hold
        scores = zeros(Float32, 3, 2, 4)
        scores[:, 2, 2] .= -Inf32
        scores[:, 1, 3] .= [0, -200, -300]
        found, wanted = log_likelihood(engine(c, device; soft=true), SoftEvidence(copy(scores))), log_likelihood(c, SoftEvidence(copy(scores)))
        @test wanted[2] == found[2] == -Inf && isapprox(exp.(found), exp.(wanted); rtol=1e-6)
        posterior = zeros(Float32, 3, 2, 4)
        LVDJuice.accumulate_posterior!(posterior, engine(c, device; soft=true), SoftEvidence(copy(scores)), ones(Int32, 4))
        @test all(iszero, posterior[:, :, 2]) && all(isfinite, posterior)
    end
end

"A job whose blocks and passes are small."
function in_small_blocks(X; block, rows, settings...)
    job = MutualInformationJob(X; settings...)
    job.counter.block, job.counter.rows = block, rows
    return job
end

@testset "device: mutual information is the CPU's, bit for bit: as products, counted, with values missing, in blocks of any size" begin
    rng = MersenneTwister(66)
    for trial in 1:12, device in DEVICES
        V, N, C = rand(rng, 1:9), rand(rng, 1:200), rand(rng, (1, 2, 5, LVDJuice.MOST_ONE_HOT, LVDJuice.MOST_ONE_HOT + 1, 70))
        X = rand(rng, UInt8(0):UInt8(C - 1), V, N)
        V > 2 && (X[2, :] .= X[1, :])
        settings = (categories=C, pseudocount=rand(rng, (0.0, 0.1, 3.0)), mask=rand(rng, Bool) ? rand(rng, Bool, V, N) : nothing)
        wanted = finish!(MutualInformationJob(X; settings...))
        @test finish!(MutualInformationJob(X; settings..., columns=zeros(UInt32, N, V), backend=device)) == wanted
        @test finish!(in_small_blocks(X; block=rand(rng, 1:4), rows=rand(rng, 1:N), settings..., backend=device)) == wanted
        parts = [in_small_blocks(X; block=2, rows=N, settings..., backend=device) for _ in 1:3]
        foreach(((number, job),) -> LVDJuice.share_out!(job, number, 3), enumerate(parts))
        @test sum(finish!, parts) == wanted
    end
    wide = 1000 .* rand(rng, 0:4, 3, 50)  # more categories than tables have: in lists
    @test finish!(MutualInformationJob(wide; categories=5000, backend=Device())) == finish!(MutualInformationJob(wide; categories=5000))
end

@testset "device: mutual information stops and goes on, and its blocks are as small as the memory" begin
    rng = MersenneTwister(67)
    X, wide = rand(rng, 0:3, 6, 90), rand(rng, 0:49, 6, 90)
    for device in DEVICES
        job = in_small_blocks(X; block=2, rows=40, categories=4, backend=device)
        steps = [advance!(job, 0.0)]
        while !steps[end][1]
            push!(steps, advance!(job, 0.0))
        end
        @test length(steps) > 9 && issorted([finished for (_, finished, _) in steps])
        @test steps[end] == (true, 6, 6)
        @test job.mi == finish!(MutualInformationJob(X; categories=4))
        @test isempty(job.counter.counts)
    end
    for (data, categories, room, block, rows) in ((X, 4, 1500, 1, 90), (X, 4, 800, 1, 45), (wide, 50, 4 * 150^2, 3, 90), (wide, 50, 4 * 50^2, 1, 90))
        made(a) = sizeof(a) > room ? throw(OutOfMemoryError()) : Remote(copy(a))  # room bytes for each array
        job = MutualInformationJob(data; categories=categories, backend=Device(made))
        @test finish!(job) == finish!(MutualInformationJob(data; categories=categories))
        @test (job.counter.block, job.counter.rows) == (block, rows)
    end
    none(a) = length(a) > 0 ? throw(OutOfMemoryError()) : a
    @test_throws OutOfMemoryError finish!(MutualInformationJob(X; categories=4, backend=Device(none)))
end

@testset "device: joint models learn what they learn on the CPU" begin
    rng = MersenneTwister(65)
    tried = rand(rng, UInt16(0):UInt16(1), 1, 2, 60)
    for device in DEVICES, candidates in (nothing, tried)
        patches = rand(rng, UInt8(0):UInt8(2), 2, 2, 60)
        settings = (candidates=candidates, epochs=3, batch_size=25, step_size=(0.9, 0.4), pseudocount=0.2, prior_pseudocount=0.3)
        models = [small_joint() for _ in 1:2]
        means = [finish!(JointEMJob(model..., patches; settings..., backend=backend)) for (model, backend) in zip(models, (CPU(), device))]
        @test means[2] ≈ means[1] rtol = 1e-5
        for (mine, theirs) in zip([models[1][1]; models[1][2]], [models[2][1]; models[2][2]])
            @test same_parameters(mine, theirs)
        end
    end
end

"Shapes under offsets on a backend: in the first variable residuals have a window; `sharpest`: their parameters lie that far apart."
function emissions_on(backend; steps=[4, 2], sharpest=1)
    em = random_emissions(2; steps=steps)
    circuits, allowed = [[circuit(e) for e in shape] for shape in em.shapes], fill(true, 8, 2)
    allowed[3:7, 1] .= false
    for c in Iterators.flatten(circuits)
        sharpest > 1 && sharpen!(MersenneTwister(1), c, sharpest)
        LVDJuice.limit_inputs!(c, allowed)
    end
    return Emissions([[engine(c, backend) for c in shape] for shape in circuits], em.steps, em.join, em.shifts)
end

"A prior over four positions, some of whose parameters are tied."
function tied_prior()
    shares(sizes...) = (x = rand(MersenneTwister(64), sizes...) .+ 0.1; x ./ sum(x, dims=1))
    prior, ties = tied_tree([2, 0, 2, 3], [1, 1, 2, 1], vec(shares(3, 1)), shares(3, 3, 2))
    return prior, Ties(ties)
end

"All that a job with offsets learns is that of another."
function same_model(a, b; rtol=1e-4)
    return all(same_parameters(circuit(x), circuit(y); rtol=rtol) for (x, y) in zip(learning(a), learning(b))) &&
           all(close_to(x, y; rtol=rtol) for (x, y) in zip([[a.emissions.join]; a.emissions.shifts], [[b.emissions.join]; b.emissions.shifts]))
end

@testset "device: models with offsets: likelihoods, shares, and what they learn, are the CPU's" begin
    rng = MersenneTwister(68)
    patches, mask = rand(rng, UInt8.(0:7), 4, 4, 60), rand(rng, 4, 4, 60) .< 0.3
    mask[:, 1, 1] .= true
    for device in DEVICES, candidates in (nothing, rand(rng, UInt16(0):UInt16(1), 1, 4, 60)), sharpest in (1, 80)
        settings = (candidates=candidates, epochs=2, batch_size=25, step_size=(0.9, 0.4), pseudocount=0.2, prior_pseudocount=0.3)
        wanted, found = map((CPU(), device)) do backend
            (prior, ties), em = tied_prior(), emissions_on(backend; sharpest=sharpest)
            job = OffsetEMJob(prior, em, patches; ties=ties, settings..., backend=backend)
            means = [advance!(job)[3] for _ in 1:2]
            scores, joins = zeros(Float32, 3, 4, 60), zeros(Float32, 5, 240)
            emission_scores!(scores, em, patches, Array(mask))
            emission_shares!(joins, (), em, reshape(patches, 4, 240), nothing, ones(Float32, 3, 240))
            (job=job, means=means, scores=scores, joins=joins, ties=ties)
        end
        @test found.means ≈ wanted.means rtol = 1e-5
        @test same_model(found.job, wanted.job; rtol=sharpest == 1 ? 1e-4 : 1e-3)
        @test close_to(exp.(found.scores), exp.(wanted.scores); rtol=1e-3)
        @test close_to(found.joins, wanted.joins; rtol=1e-3)
        weight = circuit(found.job.prior).weight
        @test all(length(unique(weight[found.ties.numbers .== number])) == 1 for number in 1:maximum(found.ties.numbers))
        @test all(LVDJuice.allowed_values(circuit(e))[3:7, 1] == fill(false, 5) for shape in found.job.emissions.shapes for e in shape)
    end
end

@testset "device: what a model with offsets learns stays there, and goes on elsewhere" begin
    rng = MersenneTwister(69)
    patches = rand(rng, UInt8.(0:7), 4, 4, 40)
    settings = (epochs=2, batch_size=15, step_size=(0.9, 0.4), pseudocount=0.2, prior_pseudocount=0.3)
    function job_on(backend, prior, ties, em)
        on = Emissions([[engine(circuit(e), backend) for e in shape] for shape in em.shapes], em.steps, em.join, em.shifts)
        return OffsetEMJob(prior, on, patches; ties=ties, settings..., backend=backend)
    end
    for device in DEVICES
        job = job_on(device, tied_prior()..., emissions_on(CPU()))
        before = deepcopy([circuit(e) for e in learning(job)])
        for _ in 1:4  # the prior, both shapes and the tables
            expect!(job)
            maximise!(job)
        end
        @test job.position == 15
        @test all(e -> e.ahead, learning(job))
        @test all(same_parameters(circuit(e), c; rtol=0) for (e, c) in zip(learning(job), before))
        @test sum(advance!(job)[1:2]) > 0 && !any(e -> e.ahead, learning(job))
        wanted, found = job_on(CPU(), tied_prior()..., emissions_on(CPU())), job_on(CPU(), tied_prior()..., emissions_on(CPU()))
        advance!(wanted)
        advance!(found, -1)  # a batch on the CPU, the others on the device
        on_device = job_on(device, circuit(found.prior), found.ties, found.emissions)
        LVDJuice.continue_from!(on_device, found.epoch, found.position, found.total)
        @test advance!(on_device)[3] ≈ wanted.total / 40 rtol = 1e-5
        @test same_model(on_device, wanted)
    end
end

@testset "device: patches below a field learn what they learn on the CPU, and jobs share batches" begin
    rng = MersenneTwister(70)
    patches = rand(rng, UInt8.(0:7), 4, 4, 25)
    for device in DEVICES
        wanted, found = map((CPU(), device)) do backend
            job = FieldEMJob(random_field([1, 1, 2], [4, 2]), emissions_on(backend; steps=[2, 4]), patches; epochs=2, batch_size=12)
            (job=job, means=[advance!(job)[3] for _ in 1:2])
        end
        @test found.means ≈ wanted.means rtol = 1e-5
        @test all(same_parameters(circuit(a), circuit(b)) for (a, b) in zip(learning(found.job), learning(wanted.job)))
        make(backend) = ((prior, ties) = tied_prior(); OffsetEMJob(prior, emissions_on(backend), patches; ties=ties, epochs=2, batch_size=12, backend=backend))
        alone, jobs = make(CPU()), [make(device) for _ in 1:2]
        @test run_shared!(jobs) ≈ [advance!(alone)[3] for _ in 1:2] rtol = 1e-5
        @test same_model(jobs[1], alone; rtol=1e-3)
    end
end

@testset "device: each kernel was launched, with what a GPU's compiler takes: numbers, and arrays of them" begin
    @test Set(kernels()) == Set(first.(collect(LAUNCHES)))
    for (f, types) in LAUNCHES
        @test all(T -> isbitstype(T <: AbstractArray ? eltype(T) : T), types)
        @test Base.return_types(f, Tuple{Int,types...}) == [Nothing]  # nothing in it is left to be found out as it runs
    end
end
