# EM on p(x) = sum_h p(h) prod_i p(x_i | h_i) of shapes below a field: the field, p(j | s) and all circuits learn together.

"""
    FieldEMJob(field, emissions, patches; candidates = nothing, epochs = 10, batch_size = 256, step_size = (0.1, 0.01),
               pseudocount = 0.1, prior_pseudocount = 0.1, seed = 0)

Mini-batch EM on log p(x) of shapes below a field, in place; arguments are those of [`OffsetEMJob`](@ref).
"""
mutable struct FieldEMJob{T<:Integer,E<:Engine,F<:Field} <: PatchJob{T}
    field::F
    emissions::Emissions{E}
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
    counts::Vector{FieldCounts}         # of each thread
    joins::Vector{Matrix{Float64}}
    counted::Vector{Bool}               # of each shape
    share::Share
end

function FieldEMJob(f::Field, em::Emissions, patches::Array{T,3}; candidates::Union{Nothing,Array{UInt16,3}}=nothing, epochs::Integer=10,
                    batch_size::Integer=256, step_size=(0.1, 0.01), pseudocount::Real=0.1, prior_pseudocount::Real=0.1,
                    seed::Integer=0) where {T<:Integer}
    check_patch_job(patches, candidates, num_positions(f), epochs, batch_size, step_size, pseudocount, prior_pseudocount)
    N, threads = size(patches, 3), Threads.nthreads()
    return FieldEMJob(f, em, patches, candidates, Int(epochs), Int(min(batch_size, N)), Float64.(step_size), Float64(pseudocount),
                      Float64(prior_pseudocount), Int(seed), Int32.(1:N), -1, nothing, 0, 0, 0.0, [FieldCounts(f) for _ in 1:threads],
                      [zeros(size(em.join)) for _ in 1:threads], fill(false, length(em.shapes)), ALL)
end

# The field's parameters are few, and counting them is half of the work of messages: of large batches one image in so many counts for
# all.
const COUNTED, IMAGES_COUNTED = 4, 64

step_of(job::FieldEMJob) = step_by_batches(job)

function expect!(job::FieldEMJob)
    job.batch === nothing && begin_batch!(job)
    b, em, f, threads = job.batch, job.emissions, job.field, Threads.nthreads()
    every = b.size < IMAGES_COUNTED ? 1 : COUNTED
    foreach(clear!, job.counts)
    foreach(joins -> fill!(joins, 0.0), job.joins)
    fill!(job.counted, false)
    for range in pieces(1:size(b.patches, 3), FIELD_IMAGES_AT_ONCE * threads)
        rows, terms, spots = image_spots(em, b.patches[:, :, range], nothing, b.tried === nothing ? nothing : b.tried[:, :, range], CUT_EM)
        weights = [[zeros(Float32, size(channel.values)) for channel in channels] for channels in rows]
        totals = zeros(threads)
        Threads.@threads for t in 1:threads
            room = MessageRoom(f)
            for n in t:threads:length(range)
                posteriors = [zeros(num_states(f), num_boxes(spot)) for spot in view(spots, :, n)]
                counts = (b.places[range[n]] - 1) % every == 0 ? job.counts[t] : nothing
                totals[t] += field_posteriors!(posteriors, counts, f, view(spots, :, n), room, every)
                for (i, posterior) in enumerate(posteriors)
                    take_terms!(weights, job.joins[t], em, rows, terms[i, n], spots[i, n], posterior)
                end
            end
        end
        b.total += sum(totals)
        pause()
        for (k, channels) in enumerate(rows), (c, channel) in enumerate(channels)
            job.counted[k] |= circuit_flows!(em.shapes[k][c], channel.data, weights[k][c])
        end
    end
    return nothing
end

"Adds the counts of a patch's joins, and fills the weights of their rows in the circuits, from its posterior, (states, boxes)."
function take_terms!(weights, joins, em, rows, terms::PatchTerms, spot::Spot, posterior)
    isempty(terms.joins) && return
    by_state, by_channel = join_shares(em, terms, spot, posterior)
    for (i, j) in enumerate(terms.joins), s in axes(joins, 1)
        joins[s, j] += by_state[s, i]
    end
    for (c, shares) in enumerate(by_channel)
        place = zeros(Int, em.categories ÷ em.steps[c])
        place[spot.places[c]] = eachindex(spot.places[c])
        for (k, n, segment) in terms.segments, row in rows_of(rows[k][c], n)
            at = place[rows[k][c].offset[row] + 1]
            at > 0 || continue
            for j in segment
                weights[k][c][terms.joins[j] - first(em.joins[k]) + 1, row] = min(shares[j, at], 1.0)
            end
        end
    end
end

function maximise!(job::FieldEMJob)
    em, step = job.emissions, step_of(job)
    apply_tables!(job, reduce(add!, job.counts), sum(job.joins))
    for (k, shape) in enumerate(em.shapes)
        if job.counted[k]
            for (e, allowed) in zip(shape, em.allowed[k])
                apply!(e, step, job.pseudocount)
                limit_inputs!(e, allowed)
            end
        end
        foreach(release!, shape)
    end
    job.position = job.batch.last
    job.total += job.batch.total
    job.batch = nothing
    return nothing
end

function apply_tables!(job::FieldEMJob, counts::FieldCounts, joins)
    field_step!(job.field, counts, step_of(job), job.prior_pseudocount)
    table_step!(job.emissions.join, joins, step_of(job), job.prior_pseudocount)
end
