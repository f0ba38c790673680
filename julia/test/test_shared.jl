# EM shared by processes, each a job of its own here: the steps of one job that has all of each batch.

using LVDJuice: circuit, expect_part!, flat_values, learning, maximise_batch!, mutual_information, share_out!

"The E-step of a job's share of a batch; what a part has counted, no later one changes."
function expect_batch!(flat, job)
    floats, finished = 0, false
    while !finished
        before, (after, finished) = flat[1:floats], expect_part!(flat, job)
        @test after >= floats && flat[1:floats] == before
        floats = after
    end
    @test floats == flat_values(job)
end

"Runs jobs, copies of one another, as processes that share each batch would; returns what the first `maximise_batch!` says of each epoch."
function run_shared!(jobs)
    foreach(((number, job),) -> share_out!(job, number, length(jobs)), enumerate(jobs))
    flats, means = [fill(NaN, flat_values(job) + 1) for job in jobs], Float64[]
    while jobs[1].epoch < jobs[1].epochs
        foreach(expect_batch!, flats, jobs)
        @test all(flat -> isnan(flat[end]), flats)  # what is beyond belongs to the caller
        total = sum(flats)
        said = [maximise_batch!(job, copy(total)) for job in jobs]
        @test all(==(said[1]), said)
        said[1][2] == 0 && push!(means, said[1][3])
    end
    return means
end

learned(job) = vcat([[circuit(e).weight; circuit(e).leaf] for e in learning(job)]...)

@testset "jobs that share batches take the steps of one" begin
    rng = MersenneTwister(91)
    some = rand(rng, UInt16(0):UInt16(1), 1, 4, 31)
    patches, X = rand(rng, UInt8.(0:7), 4, 4, 31), rand(rng, UInt8(0):UInt8(3), 5, 131)
    heads, weights = rand(rng, 1:2, 131), Float32.(rand(rng, (0.0, 1.0, 300.0), 131))
    evidence = Float32.(randn(rng, 4, 5, 131))
    makers = (
        "EM" => () -> EMJob(hclt([0, 1, 2, 3, 4]; latents=4, categories=4, heads=2), X, heads; weights=weights, epochs=2, batch_size=65),
        "EM, one large table" => () -> EMJob(hclt([0, 1, 2, 3, 4]; latents=4, categories=99), X, ones(Int, 131); epochs=2, batch_size=9),
        "EM, soft evidence" => () -> EMJob(hclt([0, 1, 2, 3, 4]; latents=4, categories=4), SoftEvidence(copy(evidence)), ones(Int, 131);
                                           epochs=2, batch_size=64, step_size=(0.5, 0.1)),
        "joint" => () -> JointEMJob(hclt([0, 1, 2, 3]; latents=2, categories=3), [hclt([0, 1, 1, 2]; latents=2, categories=8, heads=h, seed=h)
                                                                                for h in (2, 1)], patches; epochs=2, batch_size=15),
        "joint, candidates" => () -> JointEMJob(hclt([0, 1, 2, 3]; latents=2, categories=3),
                                                [hclt([0, 1, 1, 2]; latents=2, categories=8, heads=h, seed=h) for h in (2, 1)], patches;
                                                candidates=some, epochs=2, batch_size=15),
        "offsets" => () -> OffsetEMJob(hclt([0, 1, 2, 3]; latents=2, categories=3), random_emissions(2; steps=[4, 8]), patches;
                                       candidates=some, epochs=2, batch_size=15, step_size=(0.6, 0.2)),
        "field" => () -> FieldEMJob(random_field([1, 1, 2], [4, 2]), random_emissions(2; steps=[2, 4]), patches[:, :, 1:25]; epochs=2, batch_size=12),
    )
    for (name, make) in makers, processes in (1, 2, 3)
        @testset "$name, $processes" begin
            alone, jobs = make(), [make() for _ in 1:processes]
            means = run_shared!(jobs)
            @test means ≈ [advance!(alone)[3] for _ in 1:2] rtol = 1e-5
            @test all(job -> learned(job) == learned(jobs[1]), jobs)
            @test close_to(learned(jobs[1]), learned(alone); rtol=1e-3)
            alone isa OffsetEMJob && @test close_to(jobs[1].emissions.join, alone.emissions.join; rtol=1e-4)
            alone isa FieldEMJob && @test all(close_to(a, b; rtol=1e-3) for (a, b) in zip(jobs[1].field.next, alone.field.next))
        end
    end
    @test_throws ArgumentError share_out!(makers[1][2](), 3, 2)
    job = makers[1][2]()
    share_out!(job, 1, 2)
    @test_throws ArgumentError expect_part!(zeros(3), job)
end

@testset "processes that have nothing of a batch" begin
    patches = rand(MersenneTwister(92), UInt8.(0:7), 4, 4, 7)
    make() = OffsetEMJob(hclt([0, 1, 2, 3]; latents=2, categories=3), random_emissions(2; steps=[4, 8]), patches; epochs=1, batch_size=2)
    alone, jobs = make(), [make() for _ in 1:3]
    @test run_shared!(jobs) ≈ [finish!(alone)] rtol = 1e-5
    @test close_to(learned(jobs[1]), learned(alone); rtol=1e-3)
end

@testset "mutual information in shares is the whole's, bit for bit" begin
    X = rand(MersenneTwister(93), UInt8(0):UInt8(5), 7, 200)
    whole, parts = MutualInformationJob(X; categories=6), [MutualInformationJob(X; categories=6) for _ in 1:3]
    foreach(((number, job),) -> share_out!(job, number, 3), enumerate(parts))
    finish!(whole)
    foreach(finish!, parts)
    @test sum(mutual_information, parts) == mutual_information(whole)
    @test sum(job -> count(!iszero, job.mi), parts) == count(!iszero, whole.mi)
end
