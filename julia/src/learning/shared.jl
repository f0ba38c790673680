# EM that processes share: each does the E-step of its own part of every batch, what they count is added up in between, and all of them do
# the same M-step. What is counted is one array of floats, `flat`, so that it is added up at once: the counts of each circuit that learns,
# those of the tables, whether each circuit has any, and the batch's log-likelihood. As all M-steps come after all E-steps, that is the
# same step as one process takes, up to the order of its sums.

"""
    share_out!(job, number, of)

Leaves to a job, before its first step, what part `number` (from 1) of `of` parts of each batch is. Its steps are then
[`expect_part!`](@ref) and [`maximise_batch!`](@ref), not [`advance!`](@ref).
"""
function share_out!(job::Union{EMJob,PatchJob,MutualInformationJob}, number::Integer, of::Integer)
    job.share = Share(number, of)
    count_everything!(job)
    return nothing
end

count_everything!(job) = nothing
count_everything!(job::EMJob) = count_everything!(job.engine)

"Inputs whose counts only their own batch knows are of no use to other processes."
count_everything!(e::CPUEngine) = (e.inputs = nothing)

"The engines of the circuits that learn, in the order of their E-steps."
learning(job::EMJob) = [job.engine]
learning(job::JointEMJob) = [job.prior; job.circuits]
learning(job::OffsetEMJob) = [job.prior; reduce(vcat, job.emissions.shapes)]
learning(job::FieldEMJob) = reduce(vcat, job.emissions.shapes)

"What is counted beside the circuits: arrays of Float64, once the E-step is done."
tables(job::Union{EMJob,JointEMJob}) = Array{Float64}[]
tables(job::OffsetEMJob) = table_counts(job)
tables(job::FieldEMJob) = [arrays(reduce(add!, job.counts)); [sum(job.joins)]]

"As many values as `tables` has."
table_values(job::Union{EMJob,JointEMJob}) = 0
table_values(job::OffsetEMJob) = length(job.emissions.join) + sum(length, job.emissions.shifts)
table_values(job::FieldEMJob) = sum(length, arrays(job.counts[1])) + length(job.emissions.join)

"The arrays of a field's counts, its own memory."
arrays(counts::FieldCounts) = Array{Float64}[[counts.first]; counts.first_offsets; counts.next; reduce(vcat, counts.next_offsets)]

circuit_values(job) = sum(e -> length(circuit(e).weight) + length(circuit(e).leaf), learning(job))

"How many floats [`expect_part!`](@ref) fills."
flat_values(job) = circuit_values(job) + table_values(job) + length(learning(job)) + 2

"The place in `flat` from which on it says which circuits have counts, and of the log-likelihood and the weight at its end."
flags_from(job) = 1 + circuit_values(job) + table_values(job)

function check_flat(flat, job)
    length(flat) >= flat_values(job) || throw(ArgumentError("flat: found $(length(flat)) floats, wanted $(flat_values(job))"))
    return flags_from(job)
end

"Each engine with its counts: the memory of `flat`, as long as that stands."
function circuit_counts(flat::Vector{Float64}, job)
    at = 1
    return map(learning(job)) do e
        sizes = length(circuit(e).weight), length(circuit(e).leaf)
        weight, leaf = unsafe_wrap(Array, pointer(flat, at), sizes[1]), unsafe_wrap(Array, pointer(flat, at + sizes[1]), sizes[2])
        at += sum(sizes)
        e, ExpectedCounts(weight, leaf)
    end
end

"""
    expect_part!(flat, job) -> (floats, finished)

Goes on with the E-step of the job's share of the batch under way, by one circuit, or those of one shape. `flat`, Float64, gets what it
counts: the first `floats` of it are done, so that they may be sent while other parts are counted. At the end, `finished`, these are the
[`flat_values`](@ref); beyond them it stays.
"""
function expect_part!(flat::Vector{Float64}, job::Union{EMJob,PatchJob})
    flags, floats, finished = check_flat(flat, job), 0, true
    GC.@preserve flat begin
        counted = circuit_counts(flat, job)
        finished = count_part!(job) do first, last, has_counts
            floats = 0
            for (i, (e, counts)) in enumerate(counted)
                i > last && break
                floats += length(counts.weight) + length(counts.leaf)
                i < first && continue
                fill!(counts.weight, 0.0)
                fill!(counts.leaf, 0.0)
                counts!(counts, e, scale(job))
                flat[flags + i - 1] = has_counts
            end
        end
    end
    finished || return floats, false
    at = flags - table_values(job)
    for table in tables(job)
        copyto!(flat, at, table, 1, length(table))
        at += length(table)
    end
    flat[flags + length(counted):flags + length(counted) + 1] .= found(job)
    return flat_values(job), true
end

# `count_part!(done, job)` goes on by a part. `done(first, last, has_counts)`: the E-step of these circuits is done, and what the engines
# hold is to be taken. Returns whether that of the whole batch is.

function count_part!(done, job::EMJob)
    before = job.position == 0 ? (0.0, 0.0) : (job.total, job.weight)
    job.total = job.weight = 0.0
    expect!(job)
    job.found, (job.total, job.weight) = (job.total, job.weight), before
    done(1, 1, true)
    return true
end

function count_part!(done, job::JointEMJob)
    expect!(job)
    i = job.batch.part
    done(i + 1, i + 1, job.batch.counted)
    i == 0 || release!(part(job))
    job.batch.part += 1
    return i == length(job.circuits)
end

function count_part!(done, job::OffsetEMJob)
    expect!(job)
    k, channels, shapes = job.batch.part, num_channels(job.emissions), job.emissions.shapes
    if k == 0
        done(1, 1, true)
    else
        done((k - 1) * channels + 2, k * channels + 1, job.batch.counted)
        foreach(release!, shapes[k])
    end
    job.batch.part += 1
    return k == length(shapes)
end

function count_part!(done, job::FieldEMJob)
    expect!(job)
    last = 0
    for (k, shape) in enumerate(job.emissions.shapes)
        done(last + 1, last + length(shape), job.counted[k])
        foreach(release!, shape)
        last += length(shape)
    end
    return true
end

"The scale of the weights behind the counts."
scale(job::EMJob) = job.sources.scale
scale(job::PatchJob) = 1.0

"The log-likelihood of what was done here of the batch, and its weight."
found(job::EMJob) = job.found
found(job::PatchJob) = job.batch.total, length(job.batch.places)

"""
    maximise_batch!(job, flat) -> as `advance!`

The M-step of the batch under way, from what [`expect_part!`](@ref) of all shares filled `flat` with, added up. The next batch begins.
"""
function maximise_batch!(job::Union{EMJob,PatchJob}, flat::Vector{Float64})
    flags = check_flat(flat, job)
    GC.@preserve flat begin
        counted = circuit_counts(flat, job)
        for (i, (e, counts)) in enumerate(counted)
            flat[flags + i - 1] > 0 || continue
            check_counts(circuit(e), counts)
            apply_shared!(job, i, e, counts)
        end
    end
    foreach(settle!, learning(job))
    at = flags - table_values(job)
    apply_tables_from!(job, flat, at)
    total, weight = flat[flags + length(counted)], flat[flags + length(counted) + 1]
    return end_shared!(job, total, weight)
end

apply_shared!(job::EMJob, i, e, counts) = apply!(e, counts, step_of(job), job.pseudocount, scale(job))

apply_shared!(job::JointEMJob, i, e, counts) =
    apply!(e, counts, step_of(job), i == 1 ? job.prior_pseudocount : job.pseudocount, 1.0)

function apply_shared!(job::OffsetEMJob, i, e, counts)
    if i == 1
        apply!(e, job.ties === nothing ? counts : tie!(counts, job.ties), step_of(job), job.prior_pseudocount, 1.0)
    else
        apply_shape!(job, i - 1, e, counts)
    end
end

apply_shared!(job::FieldEMJob, i, e, counts) = apply_shape!(job, i, e, counts)

"The step of the shapes' circuit number `i`."
function apply_shape!(job, i, e, counts)
    channels = num_channels(job.emissions)
    apply!(e, counts, step_of(job), job.pseudocount, 1.0)
    limit_inputs!(e, job.emissions.allowed[cld(i, channels)][mod1(i, channels)])
end

apply_tables_from!(job::Union{EMJob,JointEMJob}, flat, at) = nothing

apply_tables_from!(job::OffsetEMJob, flat, at) =
    apply_tables!(job, take_arrays(flat, at, [size(job.emissions.join), map(size, job.emissions.shifts)...])...)

function apply_tables_from!(job::FieldEMJob, flat, at)
    counts = FieldCounts(job.field)
    own = arrays(counts)
    found = take_arrays(flat, at, [map(size, own)..., size(job.emissions.join)])
    foreach(copyto!, own, found)
    apply_tables!(job, counts, found[end])
end

"Arrays of these sizes that lie in `flat` one after another, copied."
function take_arrays(flat, at, sizes)
    return map(sizes) do size
        from, at = at, at + prod(size)
        reshape(flat[from:at - 1], size)
    end
end

function end_shared!(job::EMJob, total, weight)
    job.total += total
    job.weight += weight
    end_batch!(job)
    return end_epoch!(job, num_samples(job.X), job.total / job.weight)
end

function end_shared!(job::PatchJob, total, weight)
    job.position = job.batch.last
    job.total += total
    job.batch = nothing
    return end_epoch!(job, size(job.patches, 3), job.total / job.position)
end
