# The joint model p(x) = sum_z p(z) prod_i p(x_i | z_i), one latent for each position: EM on all of it.
#
# The circuits' heads, circuit after circuit, are the categories of the prior. Where p(z)'s flow enters a head at a position, it
# is the weight of that patch in the statistics of the head's circuit: together they are EM on the circuit that one would get by
# putting a copy of the patch circuits below each of the prior's inputs, with parameters that all positions share where the
# circuits are tied.

# A circuit that has less of a patch than this leaves it out: of K circuits, EM loses less than K times as much of the patch.
const NEGLIGIBLE = 1f-6

"""
EM on models of patches, part by part of a batch: a prior over all positions, number 0, then what gives the patches' probabilities.
Its fields are those of [`JointEMJob`](@ref) from `patches` on, but for pseudocounts.
"""
abstract type PatchJob{T<:Integer} end

"A batch under way: its parts are the prior, number 0, and the circuits."
mutable struct JointBatch{T<:Integer}
    last::Int                   # its last sample, in the epoch's order
    size::Int                   # its samples
    places::UnitRange{Int}      # of those that are done here
    patches::Array{T,3}         # of these
    tried::Union{Nothing,Array{UInt16,3}}
    posterior::Array{Float32,3} # p(z_i = k | x), (values, positions, samples), once the prior's E-step is done
    part::Int                   # the one whose turn it is
    counted::Bool               # whether it has flow
    total::Float64              # log-likelihood, before the step
end

"""
    JointEMJob(prior, circuits, patches; candidates = nothing, tied = true, epochs = 10, batch_size = 256, step_size = (0.1, 0.01),
               pseudocount = 0.1, prior_pseudocount = 0.1, seed = 0, backend = CPU())

Mini-batch EM on log p(x): prior and circuits learn together, in place. `patches`, integers `(variables, positions, samples)`, is
kept, not copied; `tied` is that of [`joint_circuit`](@ref); `batch_size` counts samples. `candidates`, UInt16
`(candidates, positions, samples)`, numbers for each patch the circuits that it is tried under, **from 0**; the others count as
impossible for it, so that EM raises a lower bound of p(x) (truncated variational EM). `nothing`: all. The step goes linearly from
`step_size[1]` in the first epoch to `step_size[2]` in the last. A circuit without a patch in a batch is left as it is.
[`advance!`](@ref) does the work, piece by piece.

A batch has parts: the prior, then each circuit that has patches of it. For each, E and M are apart as in [`EMJob`](@ref): [`expect!`](@ref),
[`counts!`](@ref), [`maximise!`](@ref).
"""
mutable struct JointEMJob{T<:Integer,E<:Engine} <: PatchJob{T}
    prior::E
    circuits::Vector{E}
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
    shuffled::Int               # the epoch whose order that is
    batch::Union{Nothing,JointBatch{T}}     # under way
    epoch::Int                  # finished epochs
    position::Int               # finished samples of the epoch under way
    total::Float64              # log-likelihood of those samples, each before its batch's step
    share::Share                # what is done here of each batch
end

function JointEMJob(prior::Circuit, circuits::AbstractVector{Circuit}, patches::Array{<:Integer,3};
                    candidates::Union{Nothing,Array{UInt16,3}}=nothing, tied::Bool=true, epochs::Integer=10,
                    batch_size::Integer=256, step_size=(0.1, 0.01), pseudocount::Real=0.1, prior_pseudocount::Real=0.1,
                    seed::Integer=0, backend::Backend=CPU())
    V, P, N = size(patches)
    check_patch_job(patches, candidates, prior.num_vars, epochs, batch_size, step_size, pseudocount, prior_pseudocount)
    where = places(circuits, P; tied=tied)
    K = maximum(last(values) for (_, values) in where)
    all(==(K), prior.categories[isinput.(prior.kind)]) ||
        throw(ArgumentError("prior: its inputs have other numbers of categories than the $K heads of the circuits"))
    engines = [engine(c, backend) for c in circuits]
    for e in engines
        check_data(reshape(patches, V, P * N), schedule(e).limits)
    end
    return JointEMJob(engine(prior, backend; soft=true), engines, where, patches, candidates, Int(epochs), Int(min(batch_size, N)),
                      Float64.(step_size), Float64(pseudocount), Float64(prior_pseudocount), Int(seed), Int32.(1:N), -1, nothing, 0,
                      0, 0.0, ALL)
end

"Checks what all jobs on patches have; `positions` are those of what is above them."
function check_patch_job(patches, candidates, positions, epochs, batch_size, step_size, pseudocount, prior_pseudocount)
    _, P, N = size(patches)
    N >= 1 || throw(ArgumentError("patches: found no samples"))
    P == positions || throw(ArgumentError("patches: found $P positions, the prior has $positions"))
    check_schedule(epochs, batch_size, step_size)
    check_pseudocount(pseudocount)
    check_pseudocount(prior_pseudocount, "prior_pseudocount")
    check_candidates(candidates, P, N)
end

function check_candidates(candidates, P, N)
    candidates === nothing || size(candidates)[2:3] == (P, N) ||
        throw(ArgumentError("candidates: found $(size(candidates)), wanted (.., $P, $N)"))
end

step_of(job::PatchJob) = linear_step(job.step_size, job.epoch, job.epochs)

"""
    advance!(job::PatchJob, seconds = Inf) -> (epochs finished, samples finished in the epoch under way, mean log-likelihood)

As for [`EMJob`](@ref).
"""
function advance!(job::PatchJob, seconds::Real=Inf)
    job.epoch >= job.epochs && return job.epoch, 0, NaN
    N, started = size(job.patches, 3), time()
    while job.position < N
        expect!(job)
        maximise!(job)
        job.batch === nothing && time() - started > seconds && break
    end
    foreach(settle!, learning(job))
    return end_epoch!(job, N, job.total / job.position)
end

"As for [`EMJob`](@ref), of the part of the model whose turn it is."
function expect!(job::JointEMJob)
    job.batch === nothing && begin_batch!(job)
    job.batch.part == 0 ? prior_flows!(job, job.batch) : circuit_flows!(job, job.batch)
    return nothing
end

function begin_batch!(job::PatchJob)
    N = size(job.patches, 3)
    if job.position == 0
        job.total = 0.0
    end
    if job.shuffled != job.epoch  # also where it goes on from another job's position
        copyto!(job.order, 1:N)
        shuffle!(SplitMix(job.seed, job.epoch), job.order)
        job.shuffled = job.epoch
    end
    last = min(job.position + job.batch_size, N)
    places = own(1:last - job.position, job.share)
    samples = job.order[job.position .+ places]
    tried = job.candidates === nothing ? nothing : job.candidates[:, :, samples]
    job.batch = JointBatch(last, last - job.position, places, job.patches[:, :, samples], tried, zeros(Float32, 0, 0, 0), 0, true, 0.0)
end

"The prior's E-step: its flows, and the flows into the heads, p(z_i = k | x)."
function prior_flows!(job::JointEMJob, b::JointBatch)
    K, P, N = maximum(last(values) for (_, values) in job.places), size(b.patches, 2), size(b.patches, 3)
    scores = fill(-Inf32, K, P, N)
    head_scores!(scores, job.circuits, job.places, b.patches, nothing, b.tried)
    b.posterior = zeros(Float32, K, P, N)
    b.total = accumulate_posterior!(b.posterior, job.prior, SoftEvidence(scores), ones(Int32, N))
    pause()
end

"""
    head_scores!(scores, engines, places, patches, mask, tried)

log p(patch | value) in nats into `scores`, Float32 `(values, positions, samples)`: of the circuits of the `engines`, whose positions and
values are their [`places`](@ref). `patches`: integers `(variables, positions, samples)`; what `mask`, of the same size or nothing, hides is
summed out; of a patch that is hidden altogether, nothing is written. With `tried`, UInt16 `(candidates, positions, samples)`, only what
the patch is tried under, circuits **from 0**, is written.
"""
function head_scores!(scores, engines, places, patches, mask, tried)
    V, P, N = size(patches)
    rows, all_scores = reshape(patches, V, P * N), reshape(scores, size(scores, 1), P * N)
    hidden = mask === nothing ? nothing : reshape(mask, V, P * N)
    for (number, (e, (positions, values))) in enumerate(zip(engines, places))
        own = [p + (n - 1) * P for n in 1:N for p in positions
               if (tried === nothing || number - 1 in view(tried, :, p, n)) && (mask === nothing || !all(view(mask, :, p, n)))]
        for piece in pieces(1:length(own), samples_at_once(e))
            X = rows[:, own[piece]]
            found = Matrix{Float32}(undef, length(values), length(piece))
            certain_log_likelihood!(found, e, hidden === nothing ? X : Masked(X, hidden[:, own[piece]]), 1:length(values))
            all_scores[values, own[piece]] = found
            pause()
        end
        release!(e)  # there may be hundreds
    end
end

"The E-step of a circuit, on the patches that it has a share of."
function circuit_flows!(job::JointEMJob, b::JointBatch)
    V, P, N = size(b.patches)
    e, (positions, values) = job.circuits[b.part], job.places[b.part]
    own = [p + (n - 1) * P for n in 1:N for p in positions if sum(view(b.posterior, values, p, n)) > NEGLIGIBLE]
    rows, shares = reshape(b.patches, V, P * N), reshape(b.posterior, size(b.posterior, 1), P * N)
    for piece in pieces(1:length(own), samples_at_once(e))
        expect!(e, rows[:, own[piece]], Responsibilities(shares[values, own[piece]]), 1:length(piece), 1:length(piece))
        pause()
    end
    b.counted = !isempty(own)
end

"The engine of the part at work."
part(job::JointEMJob) = job.batch.part == 0 ? job.prior : job.circuits[job.batch.part]

counts!(counts::ExpectedCounts, job::JointEMJob) = counts!(counts, part(job))

"As for [`EMJob`](@ref), of the part whose E-step is done; the next part's begins."
function maximise!(job::JointEMJob)
    job.batch.counted && apply!(part(job), step_of(job), part_pseudocount(job))
    next_part!(job, job.batch)
end

function maximise!(job::JointEMJob, counts::ExpectedCounts)
    check_counts(circuit(part(job)), counts)
    apply!(part(job), counts, step_of(job), part_pseudocount(job), 1.0)
    next_part!(job, job.batch)
end

part_pseudocount(job::JointEMJob) = job.batch.part == 0 ? job.prior_pseudocount : job.pseudocount

function next_part!(job::JointEMJob, b::JointBatch)
    b.part == 0 || release!(part(job))
    b.part += 1
    if b.part > length(job.circuits)
        job.position = b.last
        job.total += b.total
        job.batch = nothing
    end
    return nothing
end

finish!(job::PatchJob) = run_epochs!(job)

"Goes on from where an earlier job stood, between two batches."
function continue_from!(job::PatchJob, epoch, position, total)
    job.epoch, job.position, job.total = epoch, position, total
    return nothing
end
