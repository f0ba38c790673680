# EM on models with offsets, p(x) = sum_h p(h) prod_i p(x_i | h_i): the prior, the shapes' circuits and the tables of joins and offsets
# learn together. With the posterior of h_i, the counts of p(j | h), p_c(d | h) and of each shape's circuits are sums of what
# `patch_shares!` gives; each shifted row goes down its circuit with its share of the flow.

function check_ties(ties::Ties, c::Circuit)
    length(ties.numbers) == length(c.weight) ||
        throw(ArgumentError("ties: found $(length(ties.numbers)) numbers, the prior has $(length(c.weight)) edges"))
    all(>=(0), ties.numbers) || throw(ArgumentError("ties: found numbers below 0"))
end

"What one thread adds up over the patches of a batch."
struct TableCounts
    join::Matrix{Float64}
    shifts::Vector{Matrix{Float64}}
    room::ShareRoom
end

TableCounts(em::Emissions) = TableCounts(zeros(size(em.join)), [zeros(size(shift)) for shift in em.shifts], ShareRoom(em))

"""
    OffsetEMJob(prior, emissions, patches; candidates = nothing, ties = nothing, epochs = 10, batch_size = 256, step_size = (0.1, 0.01),
                pseudocount = 0.1, prior_pseudocount = 0.1, seed = 0)

Mini-batch EM on log p(x) of a model with offsets ([`Emissions`](@ref)), in place; arguments are those of [`JointEMJob`](@ref), but that
`candidates` number shapes. `prior`: a circuit over the positions, whose categories are the states h. With `ties`, its parameters
learn together. `prior_pseudocount` is also that of the tables. Values that no unit of a shape's circuit allows stay impossible.
[`advance!`](@ref) does the work.
"""
mutable struct OffsetEMJob{T<:Integer,E<:Engine} <: PatchJob{T}
    prior::E
    emissions::Emissions{E}
    ties::Union{Nothing,Ties}
    patches::Array{T,3}
    candidates::Union{Nothing,Array{UInt16,3}}
    epochs::Int
    batch_size::Int
    step_size::Tuple{Float64,Float64}
    pseudocount::Float64
    prior_pseudocount::Float64
    seed::Int
    order::Vector{Int32}
    shuffled::Int
    batch::Union{Nothing,JointBatch{T}}
    epoch::Int
    position::Int
    total::Float64
    scores::Array{Float32,3}    # log p(x_i | h), (states, positions, samples) of the batch
    rows::Vector{Vector{ShapeRows{ChannelRows{Matrix{T}}}}} # of the batch under each shape, whose circuits stay as they are until its E-step
    tables::OffsetTables
    counts::Vector{TableCounts} # of each thread
    share::Share
end

function OffsetEMJob(prior::Circuit, em::Emissions, patches::Array{T,3}; candidates::Union{Nothing,Array{UInt16,3}}=nothing,
                     ties::Union{Nothing,Ties}=nothing, epochs::Integer=10, batch_size::Integer=256, step_size=(0.1, 0.01),
                     pseudocount::Real=0.1, prior_pseudocount::Real=0.1, seed::Integer=0, backend::Backend=CPU()) where {T<:Integer}
    N = size(patches, 3)
    check_patch_job(patches, candidates, prior.num_vars, epochs, batch_size, step_size, pseudocount, prior_pseudocount)
    all(==(num_states(em)), category_limits(prior)) ||
        throw(ArgumentError("prior: its inputs have other numbers of categories than the $(num_states(em)) states"))
    ties === nothing || check_ties(ties, prior)
    return OffsetEMJob(engine(prior, backend; soft=true), em, ties, patches, candidates, Int(epochs), Int(min(batch_size, N)),
                       Float64.(step_size), Float64(pseudocount), Float64(prior_pseudocount), Int(seed), Int32.(1:N), -1, nothing, 0, 0, 0.0,
                       zeros(Float32, 0, 0, 0), [ShapeRows{ChannelRows{Matrix{T}}}[] for _ in em.shapes], OffsetTables(em), TableCounts[], ALL)
end

"""
From the first step size, of the first batch, to the second, of the last, linearly in between: large models have few epochs, and what a
large step leaves behind is the noise of its last few batches.
"""
function step_by_batches(job::PatchJob)
    N = size(job.patches, 3)
    share = (N * job.epoch + job.position) / max(N * job.epochs - job.batch_size, 1)
    return job.step_size[1] + (job.step_size[2] - job.step_size[1]) * min(share, 1.0)
end

step_of(job::OffsetEMJob) = step_by_batches(job)

"As for [`EMJob`](@ref), of the part of the model whose turn it is: the prior, then shape after shape, then the tables."
function expect!(job::OffsetEMJob)
    job.batch === nothing && begin_batch!(job)
    b = job.batch
    if b.part == 0
        prior_flows!(job, b)
    elseif b.part <= length(job.emissions.shapes)
        shape_flows!(job, b, b.part)
    end
    return nothing
end

function prior_flows!(job::OffsetEMJob, b::JointBatch)
    em, P, N = job.emissions, size(b.patches, 2), size(b.patches, 3)
    scores = Array{Float32,3}(undef, num_states(em), P, N)
    foreach(empty!, job.rows)
    emission_scores!(scores, em, b.patches, nothing, b.tried; seen=(k, rows) -> push!(job.rows[k], rows))
    job.scores = copy(scores)  # evidence is taken over
    b.posterior = zeros(Float32, num_states(em), P, N)
    b.total = accumulate_posterior!(b.posterior, job.prior, SoftEvidence(scores), ones(Int32, N))
    job.tables = OffsetTables(em)
    job.counts = [TableCounts(em) for _ in 1:Threads.nthreads()]
    pause()
end

"The E-step of shape `k`, on the patches that it is tried for."
function shape_flows!(job::OffsetEMJob, b::JointBatch, k::Int)
    em, P, N = job.emissions, size(b.patches, 2), size(b.patches, 3)
    posterior, scores = reshape(b.posterior, num_states(em), P * N), reshape(job.scores, num_states(em), P * N)
    b.counted = false
    for rows in job.rows[k]
        weights = [zeros(Float32, size(channel.values)) for channel in rows.channels]
        table_flows!(weights, job, rows, k, posterior, scores)
        pause()
        for (c, channel) in enumerate(rows.channels)
            b.counted |= circuit_flows!(em.shapes[k][c], channel.data, weights[c])
        end
    end
    empty!(job.rows[k])
end

"Adds the patches' counts of the tables up, and fills the `weights` of the heads in each row."
function table_flows!(weights, job, rows, k, posterior, scores)
    em, threads, own, channels = job.emissions, length(job.counts), rows.own, rows.channels
    Threads.@threads for t in 1:threads
        counts, room = job.counts[t], job.counts[t].room
        for n in t:threads:length(own)
            all(rows -> possible(rows, n), channels) || continue
            activate!(room, em, channels, n, view(posterior, :, own[n]), view(scores, :, own[n]), LEAST_OF_PATCH)
            patch_shares!(room, em, job.tables, k, channels, n, LEAST_OF_PATCH)
            for (i, h) in enumerate(room.active)
                for (head, j) in enumerate(em.joins[k])
                    @inbounds counts.join[h, j] += room.joint[i, head]
                end
                for (c, rows) in enumerate(channels), (place, row) in enumerate(rows_of(rows, n))
                    @inbounds counts.shifts[c][h, rows.offset[row] + 1] += room.of_offsets[c][i, place]
                end
            end
            for (c, rows) in enumerate(channels), (place, row) in enumerate(rows_of(rows, n)), head in axes(weights[c], 1)
                @inbounds weights[c][head, row] = min(room.of_rows[c][head, place], 1.0)
            end
        end
    end
end

# EM leaves out what has less of a patch than this: states and heads, and rows, three quarters of them on CIFAR-10, which have less than
# a thousandth of what all rows have.
const LEAST_OF_PATCH, LEAST_OF_ROW = 1f-4, 1f-3

"The E-step of a circuit on rows whose heads have these weights; whether any has."
function circuit_flows!(e::Engine, data, weights)
    rows = [n for n in axes(weights, 2) if sum(view(weights, :, n)) > LEAST_OF_ROW]
    for piece in pieces(1:length(rows), samples_at_once(e))
        expect!(e, data[:, rows[piece]], Responsibilities(weights[:, rows[piece]]), 1:length(piece), 1:length(piece))
        pause()
    end
    return !isempty(rows)
end

"As for [`EMJob`](@ref), of the part whose E-step is done; the next part's begins."
function maximise!(job::OffsetEMJob)
    b, em = job.batch, job.emissions
    if b.part == 0
        apply_tied!(job.prior, job.ties, step_of(job), job.prior_pseudocount)
    elseif b.part > length(em.shapes)
        apply_tables!(job, table_counts(job)...)
    elseif b.counted
        for (e, allowed) in zip(em.shapes[b.part], em.allowed[b.part])
            apply!(e, step_of(job), job.pseudocount)
            limit_inputs!(e, allowed)
        end
    end
    0 < b.part <= length(em.shapes) && foreach(release!, em.shapes[b.part])
    b.part += 1
    if b.part > length(em.shapes) + 1
        job.position = b.last
        job.total += b.total
        job.batch = nothing
        empty!(job.counts)
    end
    return nothing
end

"The counts of the tables, those of all threads: of the joins, then of each channel's offsets."
table_counts(job::OffsetEMJob) = [sum(counts.join for counts in job.counts),
                                  (sum(counts.shifts[c] for counts in job.counts) for c in eachindex(job.emissions.shifts))...]

function apply_tables!(job::OffsetEMJob, join, shifts...)
    table_step!(job.emissions.join, join, step_of(job), job.prior_pseudocount)
    for (shift, counts) in zip(job.emissions.shifts, shifts)
        table_step!(shift, counts, step_of(job), job.prior_pseudocount)
    end
end

"One EM step of a table of distributions, (states, values), as for the parameters of a sum ([`apply!`](@ref))."
function table_step!(table::Matrix{Float32}, counts::Matrix{Float64}, step, pseudocount)
    S, K = size(table)
    for h in 1:S
        total = sum(view(counts, h, :)) + pseudocount
        has_flow(total) || continue
        for k in 1:K
            table[h, k] = (1 - step) * table[h, k] + step * (counts[h, k] + pseudocount / K) / total
        end
    end
end
