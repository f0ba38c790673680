# The joint model p(x) = sum_z p(z) prod_i p(x_i | z_i), one latent for each position: EM on all of it.
#
# The circuits' heads, circuit after circuit, are the categories of the prior. Where p(z)'s flow enters a head at a position, it
# is the weight of that patch in the statistics of the head's circuit: together they are EM on the circuit that one would get by
# putting a copy of the patch circuits below each of the prior's inputs, with parameters that all positions share where the
# circuits are tied.

# A circuit that has less of a patch than this leaves it out: of K circuits, EM loses less than K times as much of the patch.
const NEGLIGIBLE = 1f-6

"""
    JointEMJob(prior, circuits, patches; candidates = nothing, tied = true, epochs = 10, batch_size = 256, step_size = (0.1, 0.01),
               pseudocount = 0.1, prior_pseudocount = 0.1, seed = 0)

Mini-batch EM on log p(x): prior and circuits learn together, in place. `patches`, integers `(variables, positions, samples)`, is
kept, not copied; `tied` is that of [`joint_circuit`](@ref); `batch_size` counts samples. `candidates`, UInt16
`(candidates, positions, samples)`, numbers for each patch the circuits that it is tried under, **from 0**; the others count as
impossible for it, so that EM raises a lower bound of p(x) (truncated variational EM). `nothing`: all. The step goes linearly from
`step_size[1]` in the first epoch to `step_size[2]` in the last. A circuit without a patch in a batch is left as it is.
[`advance!`](@ref) does the work, batch by batch.
"""
mutable struct JointEMJob{T<:Integer}
    prior::Plan
    circuits::Vector{Plan}
    places::Vector{Tuple{UnitRange{Int},UnitRange{Int}}}    # of each circuit: its positions, and the values that its heads are
    patches::Array{T,3}
    candidates::Union{Nothing,Array{UInt16,3}}
    epochs::Int
    batch_size::Int
    step_size::Tuple{Float64,Float64}
    pseudocount::Float64
    prior_pseudocount::Float64
    seed::Int
    order::Vector{Int32}
    prior_workspaces::Vector{Workspace}
    prior_statistics::Vector{Statistics}
    products::Vector{Vector{Float32}}
    epoch::Int                  # finished epochs
    position::Int               # finished samples of the epoch under way
    total::Float64              # log-likelihood of those samples, each before its batch's step
end

function JointEMJob(prior::Circuit, circuits::AbstractVector{Circuit}, patches::Array{<:Integer,3};
                    candidates::Union{Nothing,Array{UInt16,3}}=nothing, tied::Bool=true, epochs::Integer=10,
                    batch_size::Integer=256, step_size=(0.1, 0.01), pseudocount::Real=0.1, prior_pseudocount::Real=0.1,
                    seed::Integer=0)
    V, P, N = size(patches)
    N >= 1 || throw(ArgumentError("patches: found no samples"))
    P == prior.num_vars || throw(ArgumentError("patches: found $P positions, the prior has $(prior.num_vars)"))
    where = places(circuits, P; tied=tied)
    K = maximum(last(values) for (_, values) in where)
    all(==(K), prior.categories[isinput.(prior.kind)]) ||
        throw(ArgumentError("prior: its inputs have other numbers of categories than the $K heads of the circuits"))
    epochs >= 0 || throw(ArgumentError("epochs = $epochs: want 0 or more"))
    batch_size >= 1 || throw(ArgumentError("batch_size = $batch_size: want at least 1"))
    all(s -> 0 < s <= 1, step_size) || throw(ArgumentError("step_size = $step_size: want numbers in (0, 1]"))
    check_pseudocount(pseudocount)
    check_pseudocount(prior_pseudocount, "prior_pseudocount")
    candidates === nothing || size(candidates)[2:3] == (P, N) ||
        throw(ArgumentError("candidates: found $(size(candidates)), wanted (.., $P, $N)"))
    plans = [Plan(c) for c in circuits]
    for plan in plans
        check_data(reshape(patches, V, P * N), plan.limits)
    end
    plan, threads = Plan(prior; soft=true), Threads.nthreads()
    return JointEMJob(plan, plans, where, patches, candidates, Int(epochs), Int(min(batch_size, N)), Float64.(step_size),
                      Float64(pseudocount), Float64(prior_pseudocount), Int(seed), Int32.(1:N), [Workspace(plan; flows=true) for _ in 1:threads],
                      [Statistics(prior) for _ in 1:threads], [zeros(Float32, TILE * K) for _ in 1:threads], 0, 0, 0.0)
end

step_of(job::JointEMJob) = linear_step(job.step_size, job.epoch, job.epochs)

"""
    advance!(job::JointEMJob, seconds = Inf) -> (epochs finished, samples finished in the epoch under way, mean log-likelihood)

As for [`EMJob`](@ref).
"""
function advance!(job::JointEMJob, seconds::Real=Inf)
    job.epoch >= job.epochs && return job.epoch, 0, NaN
    N, started = size(job.patches, 3), time()
    if job.position == 0
        job.total = 0.0
    end
    copyto!(job.order, 1:N)
    shuffle!(SplitMix(job.seed, job.epoch), job.order)  # in each call: it may go on from another job's position
    while job.position < N
        last = min(job.position + job.batch_size, N)
        joint_step!(job, job.order[job.position + 1:last])
        job.position = last
        time() - started > seconds && break
    end
    mean = job.total / job.position
    if job.position == N
        job.epoch += 1
        job.position = 0
    end
    return job.epoch, job.position, mean
end

"One batch."
function joint_step!(job::JointEMJob, samples::Vector{Int32})
    patches = job.patches[:, :, samples]
    tried = job.candidates === nothing ? nothing : job.candidates[:, :, samples]
    posterior, total = prior_flows!(job, SoftEvidence(head_scores(job, patches, tried)))
    job.total += total
    step = step_of(job)
    apply!(job.prior, job.prior_statistics, step, job.prior_pseudocount)
    for (plan, (positions, values)) in zip(job.circuits, job.places)
        circuit_step!(plan, columns(patches, positions), columns(posterior, positions), values, step, job.pseudocount)
    end
end

"log p(patch | value) in nats: Float32 `(values, positions, samples)`; -Inf under circuits that are not among those `tried`."
function head_scores(job::JointEMJob, patches::Array, tried)
    V, P, N = size(patches)
    scores = fill(-Inf32, maximum(last(values) for (_, values) in job.places), P, N)
    for (number, (plan, (positions, values))) in enumerate(zip(job.circuits, job.places))
        if tried !== nothing
            own = [p + (n - 1) * P for n in 1:N for p in positions if number - 1 in view(tried, :, p, n)]
            found = Matrix{Float32}(undef, length(values), length(own))
            log_likelihood!(found, plan, reshape(patches, V, :)[:, own], 1:length(values))
            reshape(scores, :, P * N)[values, own] = found
        else
            out = length(positions) == P ? view(columns(scores, positions), values, :) : view(scores, values, positions[1], :)
            log_likelihood!(out, plan, columns(patches, positions), 1:length(values))
        end
    end
    return scores
end

"What there is at some positions, sample after sample: a matrix of `(.., positions, samples)`, without a copy if it is all."
columns(array::Array, positions) =
    reshape(length(positions) == size(array, 2) ? array : array[:, positions, :], size(array, 1), :)

"""
Adds the flows of the prior's parameters to its statistics; returns the flows into the heads, p(z_i = k | x), Float32
`(categories, positions, samples)`, and the log-likelihood.
"""
function prior_flows!(job::JointEMJob, X::SoftEvidence)
    N, threads = num_samples(X), Threads.nthreads()
    posterior, totals = zeros(Float32, size(X.likelihood)), zeros(threads)
    sources = Sources(ones(Int32, N), ones(Float32, N))
    Threads.@threads for t in 1:threads
        totals[t] = prior_flows!(posterior, job.prior_statistics[t], job.prior_workspaces[t], job.prior, X, sources,
                                 job.products[t], 1 + (t - 1) * TILE:threads * TILE:N)
    end
    return posterior, sum(totals)
end

"The share of one thread: the tiles that begin with the samples `firsts`; returns their log-likelihood."
function prior_flows!(posterior::Array{Float32,3}, stat::Statistics, ws::Workspace, plan::Plan, X::SoftEvidence,
                      sources::Sources, product::Vector{Float32}, firsts)
    N, total = num_samples(X), 0.0
    GC.@preserve ws stat plan X for first in firsts
        count = load_samples!(ws, 1:N, first, N)
        forward!(ws, plan, X)
        total += flows!(stat, ws, plan, X, sources, count, 0) do gi
            g = plan.groups[gi]
            input_statistics!(stat, ws, plan, g, X)  # it leaves the derivatives in the place of the values
            add_marginals!(posterior, ws, plan, g, X, value_columns(ws, g), product, count)
        end
        for s in 1:count
            n = ws.samples[s]
            if ws.live[s]
                finish_marginals!(posterior, plan.circuit, X, n, sources.head_of)
            else
                fill!(view(posterior, :, :, n), 0f0)
                Base.invokelatest(exact_marginals!, posterior, plan.circuit, X, sources.head_of, n)  # compiled only here
            end
        end
    end
    return total
end

"A step of one circuit, whose heads are the rows `heads` of the posterior, on the patches that it has a share of."
function circuit_step!(plan::Plan, patches::Matrix, posterior::Matrix{Float32}, heads::UnitRange, step, pseudocount)
    own = findall(n -> sum(view(posterior, heads, n)) > NEGLIGIBLE, axes(posterior, 2))
    isempty(own) && return
    c, threads = plan.circuit, Threads.nthreads()
    stats = [Statistics(c) for _ in 1:threads]
    workspaces = [Workspace(plan; flows=true) for _ in 1:threads]
    X, sources = patches[:, own], Responsibilities(posterior[heads, own])
    if length(own) <= SINGLE_PRECISION_SAMPLES
        accumulate!(stats, workspaces, plan, X, sources, 1:length(own), 1, length(own))
        apply!(plan, stats, step, pseudocount)
    else
        counts = ExpectedCounts(c)
        accumulate!(counts, stats, workspaces, plan, X, sources, 1:length(own), 1, length(own))
        apply!(plan, counts, stats, step, pseudocount)
    end
end
