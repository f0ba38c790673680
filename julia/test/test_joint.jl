"A joint model over two positions of patches of V variables: a prior and circuits of 2 and 1 heads."
function small_joint(; V=2, C=3, seed=1)
    circuits = [hclt(collect(0:V-1); latents=2, categories=C, heads=heads, seed=seed + heads) for heads in (2, 1)]
    return hclt([0, 1]; latents=2, categories=3, seed=seed), circuits
end

"""
p(x) and the posterior of the latents (K, P), by enumeration of their values; `tried`: the circuits, from 0, that are possible,
(M, P).
"""
function enumerated(prior, circuits, x, tried=[0 0; 1 1])
    given = hcat([vcat([exp.(vec(log_likelihood(c, reshape(x[:, i], :, 1)))) .* (k - 1 in tried[:, i])
                        for (k, c) in enumerate(circuits)]...) for i in axes(x, 2)]...)
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
    some = rand(rng, UInt16(0):UInt16(1), 1, 2, 70)  # of the two circuits one for each patch
    for (step, pseudocount, own, tried) in ((1.0, 0.0, 0.0, nothing), (0.3, 0.2, 0.7, nothing), (0.3, 0.2, 0.7, some))
        prior, circuits = small_joint()
        patches = rand(rng, UInt8(0):UInt8(2), 2, 2, 70)
        possible = tried === nothing ? repeat(UInt16[0, 1], 1, 2, 70) : tried
        found = [enumerated(prior, circuits, patches[:, :, n], possible[:, :, n]) for n in 1:70]
        posterior = cat([p for (_, p) in found]...; dims=3)
        expected_prior, expected = deepcopy(prior), deepcopy(circuits)
        scores = cat([vcat([Float32.(log_likelihood(c, patches[:, :, n])) for c in circuits]...) for n in 1:70]...; dims=3)
        for n in 1:70, i in 1:2, (k, heads) in enumerate((1:2, 3:3))
            k - 1 in possible[:, i, n] || (scores[heads, i, n] .= -Inf32)
        end
        finish!(EMJob(expected_prior, SoftEvidence(scores), ones(Int, 70); epochs=1, batch_size=70, step_size=(step, step),
                      pseudocount=own))
        for (c, heads) in zip(expected, (1:2, 3:3))  # every patch under every head, weighed by the posterior
            rows = repeat(reshape(patches, 2, 140), 1, length(heads))
            weights = Float32.(vcat([vec(posterior[k, :, :]) for k in heads]...))
            plan = Plan(c)
            job = LVDJuice.FlowJob(plan, rows, repeat(1:length(heads), inner=140); weights=weights)
            advance!(job)
            LVDJuice.apply!(job.engine, job.counts, step, pseudocount)
        end
        job = JointEMJob(prior, circuits, patches; candidates=tried, epochs=1, batch_size=70, step_size=(step, step),
                         pseudocount=pseudocount, prior_pseudocount=own)
        mean = advance!(job)[3]
        @test mean ≈ sum(log(p) for (p, _) in found) / 70 rtol=1e-6
        for (c, e) in zip([prior; circuits], [expected_prior; expected])
            @test close_to(c.weight, e.weight; rtol=1e-4)
            @test close_to(c.leaf, e.leaf; rtol=1e-4)
        end
    end
end

@testset "positions that are not tied" begin
    prior, (three, one) = small_joint()
    two = hclt([0, 1]; latents=2, categories=3, heads=3, seed=9)
    circuits = [three, one, two]  # of two heads and one head at the first position, of three heads at the second
    @test LVDJuice.places(circuits, 2; tied=false) == [(1:1, 1:2), (1:1, 3:3), (2:2, 1:3)]
    @test LVDJuice.places(circuits, 2) == [(1:2, 1:2), (1:2, 3:3), (1:2, 4:6)]
    joint = joint_circuit(prior, circuits, [1 3; 2 4]; tied=false)
    X = assignments(4, 3)
    given = [vcat(log_likelihood(three, X[1:2, :]), log_likelihood(one, X[1:2, :])), log_likelihood(two, X[3:4, :])]
    expected = log_likelihood(prior, SoftEvidence(permutedims(Float32.(cat(given...; dims=3)), (1, 3, 2))))
    @test close_to(log_likelihood(joint, X), expected)
    # EM on it is EM on the circuit written out.
    rows = rand(MersenneTwister(35), UInt8(0):UInt8(2), 4, 90)
    whole = EMJob(joint, rows, ones(Int, 90); epochs=2, batch_size=90, step_size=(0.7, 0.3), pseudocount=0.2)
    job = JointEMJob(prior, circuits, reshape(rows, 2, 2, 90); tied=false, epochs=2, batch_size=90, step_size=(0.7, 0.3),
                     pseudocount=0.2, prior_pseudocount=0.2)
    for _ in 1:2
        @test advance!(job)[3] ≈ advance!(whole)[3] rtol=1e-6
    end
    again = joint_circuit(prior, circuits, [1 3; 2 4]; tied=false)
    @test close_to(again.weight, joint.weight; rtol=1e-4) && close_to(again.leaf, joint.leaf; rtol=1e-4)
    for own in ([three, two, one], [three, one], [three, one, two, one], [one])
        @test occursin("other numbers of heads", message_of(() -> LVDJuice.places(own, 2; tied=false)))
    end
end

@testset "full-batch EM on the joint model never lowers the likelihood" begin
    rng = MersenneTwister(32)
    prior, circuits = small_joint(C=4)
    patches = rand(rng, 0:3, 2, 2, 200)
    patches[2, :, :] .= patches[1, :, :]  # much to learn, whatever the random numbers are
    patches[:, 2, :] .= patches[:, 1, :]
    job = JointEMJob(prior, circuits, patches; epochs=40, batch_size=200, step_size=(1.0, 1.0), pseudocount=0.0,
                     prior_pseudocount=0.0)
    likelihoods = [advance!(job)[3] for _ in 1:40]
    @test all(diff(likelihoods) .> -1e-5)
    @test likelihoods[end] > likelihoods[1] + 0.1
end

@testset "flows from several heads at once are the sum of those from each" begin
    rng = MersenneTwister(34)
    for trial in 1:20
        c = trial <= 15 ? random_circuit(rng, rand(rng, 1:5), 3, 3) : fully_factorized(num_vars=60, num_cats=3, heads=3)
        # The last head underflows beside the first: 60 factors, each a million times smaller.
        trial > 15 && (c.leaf .= repeat(Float32[0.3, 0.4, 1e-7, 0.3, 0.3, 1e-7, 0.4, 0.3, 1 - 2e-7], outer=60))
        X, shares = rand(rng, 0:2, c.num_vars, 40), rand(rng, Float32, 3, 40)
        trial > 15 && (X .= rand(rng, 0:1, c.num_vars, 40))
        shares[rand(rng, 1:120, 30)] .= 0
        e = engine(c)
        total, _ = expect!(e, X, LVDJuice.Responsibilities(shares), 1:40, 1:40)
        counts = counts!(ExpectedCounts(c), e)
        job = LVDJuice.FlowJob(e, repeat(X, 1, 3), repeat(1:3, inner=40); weights=vec(permutedims(shares)))
        advance!(job)
        @test total ≈ job.total rtol=1e-5
        @test close_to(counts.weight, job.counts.weight; rtol=1e-3)
        @test close_to(counts.leaf, job.counts.leaf; rtol=1e-3)
    end
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
    @test refused("pseudocount = -1: want 0, or 1e-30 to 1e20", prior, circuits, patches; pseudocount=-1)
    @test refused("prior_pseudocount = Inf: want 0, or 1e-30 to 1e20", prior, circuits, patches; prior_pseudocount=Inf)
    @test refused("candidates: found (1, 3, 5), wanted (.., 2, 5)", prior, circuits, patches; candidates=zeros(UInt16, 1, 3, 5))
end
