"A joint model over two positions of patches of V variables: a prior and circuits of 2 and 1 heads."
function small_joint(; V=2, C=3, seed=1)
    circuits = [hclt(collect(0:V-1); latents=2, categories=C, heads=heads, seed=seed + heads) for heads in (2, 1)]
    return hclt([0, 1]; latents=2, categories=3, seed=seed), circuits
end

"p(x) and the posterior of the latents (K, P), by enumeration of their values."
function enumerated(prior, circuits, x)
    given = hcat([vcat([exp.(vec(log_likelihood(c, reshape(x[:, i], :, 1)))) for c in circuits]...) for i in axes(x, 2)]...)
    total, posterior = 0.0, zeros(size(given))
    for z in eachcol(assignments(2, 3))
        p = exp(log_likelihood(prior, reshape(collect(z), :, 1))[1]) * prod(given[z[i] + 1, i] for i in 1:2)
        total += p
        for i in 1:2
            posterior[z[i] + 1, i] += p
        end
    end
    return total, posterior ./ total
end

@testset "a step of EM on the joint model, against enumeration" begin
    rng = MersenneTwister(31)
    for (step, pseudocount, own) in ((1.0, 0.0, 0.0), (0.3, 0.2, 0.7))
        prior, circuits = small_joint()
        patches = rand(rng, UInt8(0):UInt8(2), 2, 2, 70)
        found = [enumerated(prior, circuits, patches[:, :, n]) for n in 1:70]
        posterior = cat([p for (_, p) in found]...; dims=3)
        expected_prior, expected = deepcopy(prior), deepcopy(circuits)
        scores = cat([vcat([Float32.(log_likelihood(c, patches[:, :, n])) for c in circuits]...) for n in 1:70]...; dims=3)
        finish!(EMJob(expected_prior, SoftEvidence(scores), ones(Int, 70); epochs=1, batch_size=70, step_size=(step, step),
                      pseudocount=own))
        for (c, heads) in zip(expected, (1:2, 3:3))  # every patch under every head, weighed by the posterior
            rows = repeat(reshape(patches, 2, 140), 1, length(heads))
            weights = Float32.(vcat([vec(posterior[k, :, :]) for k in heads]...))
            plan = Plan(c)
            job = LVDJuice.FlowJob(plan, rows, repeat(1:length(heads), inner=140); weights=weights)
            advance!(job)
            LVDJuice.apply!(plan, job.counts, [LVDJuice.Statistics(c)], step, pseudocount)
        end
        job = JointEMJob(prior, circuits, patches; epochs=1, batch_size=70, step_size=(step, step), pseudocount=pseudocount,
                         prior_pseudocount=own)
        mean = advance!(job)[3]
        @test mean ≈ sum(log(p) for (p, _) in found) / 70 rtol=1e-6
        for (c, e) in zip([prior; circuits], [expected_prior; expected])
            @test close_to(c.weight, e.weight; rtol=1e-4)
            @test close_to(c.leaf, e.leaf; rtol=1e-4)
        end
    end
end

@testset "full-batch EM on the joint model never lowers the likelihood" begin
    rng = MersenneTwister(32)
    prior, circuits = small_joint(C=4)
    patches = rand(rng, 0:3, 2, 2, 200)
    patches[:, 2, :] .= patches[:, 1, :]
    job = JointEMJob(prior, circuits, patches; epochs=40, batch_size=200, step_size=(1.0, 1.0), pseudocount=0.0,
                     prior_pseudocount=0.0)
    likelihoods = [advance!(job)[3] for _ in 1:40]
    @test all(diff(likelihoods) .> -1e-5)
    @test likelihoods[end] > likelihoods[1] + 0.1
end

@testset "patches that underflow take part" begin
    # 60 variables, each category a hundred times less likely than the last: a product far below any Float32.
    prior, circuits = small_joint(V=60, C=4)
    for c in circuits
        c.leaf .= repeat(Float32[1, 1e-3, 1e-6, 1e-9] ./ sum(Float32[1, 1e-3, 1e-6, 1e-9]), inner=2, outer=60)
    end
    patches = fill(UInt8(3), 60, 2, 20)
    expected = log_likelihood(prior, SoftEvidence(reshape(LVDJuice.head_scores(Plan.(circuits), reshape(patches, 60, 40)), 3, 2, 20)))
    job = JointEMJob(prior, circuits, patches; epochs=2, batch_size=20, step_size=(1.0, 1.0), pseudocount=0.0)
    @test advance!(job)[3] ≈ sum(expected) / 20 rtol=1e-6
    @test advance!(job)[3] > -1  # they are all alike
end

@testset "EM on the joint model in batches: pieces, seeds, and going on" begin
    rng = MersenneTwister(33)
    patches = rand(rng, UInt8(0):UInt8(2), 2, 2, 130)
    train(; seed=1, seconds=Inf, cut=0) = begin
        prior, circuits = small_joint()
        job = JointEMJob(prior, circuits, patches; epochs=3, batch_size=50, seed=seed)
        taken = 0
        while job.epoch < 3
            advance!(job, seconds)
            taken += 1
            if taken == cut  # a job of its own goes on
                again = JointEMJob(prior, circuits, patches; epochs=3, batch_size=50, seed=seed)
                LVDJuice.continue_from!(again, job.epoch, job.position, job.total)
                job = again
            end
        end
        vcat(prior.weight, prior.leaf, [c.leaf for c in circuits]...)
    end
    whole = train()
    @test whole == train(seconds=0.0)
    @test whole == train(seconds=0.0, cut=4)
    @test whole != train(seed=2)
end

@testset "a joint model that does not fit together is refused" begin
    prior, circuits = small_joint()
    refused(message, args...; kwargs...) = try
        JointEMJob(args...; kwargs...)
        false
    catch e
        e isa ArgumentError && occursin(message, e.msg)
    end
    patches = zeros(UInt8, 2, 2, 5)
    @test refused("found 3 positions, the prior has 2", prior, circuits, zeros(UInt8, 2, 3, 5))
    @test refused("than the 2 heads", prior, circuits[1:1], patches)
    @test refused("found no samples", prior, circuits, zeros(UInt8, 2, 2, 0))
    @test refused("outside 0..2", prior, circuits, fill(UInt8(3), 2, 2, 5))
    @test refused("step_size", prior, circuits, patches; step_size=(0.0, 0.1))
end
