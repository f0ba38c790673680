# Learning by expectation maximisation: flows are the expected counts (E), their shares the new parameters (M).

"""
    EMJob(circuit, X, head_of; weights = ones, epochs = 50, batch_size = 256, step_size = (0.1, 0.01), pseudocount = 0.1,
          shuffle = true, seed = 0, backend = CPU())

Mini-batch EM on the sum over samples of weights[n] log p(x_n | head_of[n]); changes the circuit's parameters in place. The step goes
linearly from `step_size[1]` in the first epoch to `step_size[2]` in the last; the last short batch of an epoch is used.
`X` is kept, not copied. [`advance!`](@ref) does the work, piece by piece.

E and M are apart: [`expect!`](@ref) adds up a batch, [`counts!`](@ref) takes what it came to, and [`maximise!`](@ref) applies that, or
what it and those of other processes came to.
"""
mutable struct EMJob{D<:Data,E<:Engine}
    engine::E
    X::D
    sources::Sources
    epochs::Int
    batch_size::Int
    step_size::Tuple{Float64,Float64}
    pseudocount::Float64
    shuffle::Bool
    seed::Int
    order::Vector{Int32}
    epoch::Int                  # finished epochs
    position::Int               # finished samples of the epoch under way
    total::Float64              # weighted log-likelihood of those samples, each before its batch's step
    weight::Float64             # their weight
    share::Share                # what is done here of each batch
    found::Tuple{Float64,Float64}   # total and weight of that share of the batch under way
end

function EMJob(c::Circuit, X::Data, head_of::AbstractVector{<:Integer}; weights=ones(Float32, num_samples(X)), epochs::Integer=50,
               batch_size::Integer=256, step_size=(0.1, 0.01), pseudocount::Real=0.1, shuffle::Bool=true, seed::Integer=0,
               backend::Backend=CPU())
    N = num_samples(X)
    N >= 1 || throw(ArgumentError("X has no samples"))
    sources = Sources(c, head_of, weights, N)
    check_schedule(epochs, batch_size, step_size)
    check_pseudocount(pseudocount)
    batch_size = Int(min(batch_size, N))
    e = engine(c, backend; soft=X isa SoftEvidence, batch_size=has_categories(X) ? batch_size : 0)
    check_data(X, schedule(e).limits)
    return EMJob(e, X, sources, Int(epochs), batch_size, Float64.(step_size), Float64(pseudocount), shuffle, Int(seed), Int32.(1:N),
                 0, 0, 0.0, 0.0, ALL, (0.0, 0.0))
end

function check_schedule(epochs, batch_size, step_size)
    epochs >= 0 || throw(ArgumentError("epochs = $epochs: want 0 or more"))
    batch_size >= 1 || throw(ArgumentError("batch_size = $batch_size: want at least 1"))
    all(s -> 0 < s <= 1, step_size) || throw(ArgumentError("step_size = $step_size: want numbers in (0, 1]"))
end

step_of(job::EMJob) = linear_step(job.step_size, job.epoch, job.epochs)

"From the first step size, in epoch 0, to the second, in the last."
linear_step(sizes, epoch, epochs) = sizes[1] + (sizes[2] - sizes[1]) * (epochs == 1 ? 0.0 : epoch / (epochs - 1))

"""
    advance!(job, seconds = Inf) -> (epochs finished, samples finished in the epoch under way, mean log-likelihood)

Goes on for about `seconds`, at most to the end of an epoch, and leaves the circuit up to date. The mean is over the samples of the
epoch under way, or, where it has just ended, of the whole epoch; in nats, each sample before its batch's step.
"""
function advance!(job::EMJob, seconds::Real=Inf)
    job.epoch >= job.epochs && return job.epoch, 0, NaN
    N, started = num_samples(job.X), time()
    at_once = job.batch_size * steps_at_once(job.engine, job.batch_size)
    try
        while job.position < N
            expect!(job)
            maximise!(job)
            job.position % at_once == 0 || job.position == N || continue
            settle!(job.engine)
            time() - started > seconds && break
        end
    catch
        settle!(job.engine)
        rethrow()
    end
    return end_epoch!(job, N, job.total / job.weight)
end

"Ends the epoch of `N` samples where it is at its end; returns what [`advance!`](@ref) does."
function end_epoch!(job, N::Int, mean::Float64)
    if job.position == N
        job.epoch += 1
        job.position = 0
    end
    return job.epoch, job.position, mean
end

"The last sample of the batch under way, in the epoch's order."
batch_end(job::EMJob) = min(job.position + job.batch_size, num_samples(job.X))

"""
    expect!(job)

The E-step of the batch under way: the flows of its samples, those of the job's share, add up in the engine.
"""
function expect!(job::EMJob)
    job.position == 0 && begin_epoch!(job)
    mine = own(job.position + 1:batch_end(job), job.share)
    for range in pieces(mine, samples_at_once(job.engine))
        first(range) > first(mine) && pause()  # between pieces: a batch in one piece may leave parameters that are not settled
        total, _ = expect!(job.engine, job.X, job.sources, job.order, range)
        job.total += total
        for i in range
            job.weight += job.sources.weight_of[job.order[i]]
        end
    end
    return nothing
end

function begin_epoch!(job::EMJob)
    job.total = job.weight = 0.0
    if job.shuffle
        copyto!(job.order, 1:num_samples(job.X))
        shuffle!(SplitMix(job.seed, job.epoch), job.order)
    end
end

"""
    counts!(counts, job)

Adds the flows of the batch, whose E-step is done, to [`ExpectedCounts`](@ref), and clears them.
"""
counts!(counts::ExpectedCounts, job::EMJob) = counts!(counts, job.engine, job.sources.scale)

"""
    maximise!(job, [counts])

The M-step of the batch under way, from its own flows or from counts: [`counts!`](@ref), added up over processes. The next batch begins.
"""
function maximise!(job::EMJob)
    apply!(job.engine, step_of(job), scaled_pseudocount(job.pseudocount, job.sources.scale))
    end_batch!(job)
end

function maximise!(job::EMJob, counts::ExpectedCounts)
    check_counts(circuit(job.engine), counts)
    apply!(job.engine, counts, step_of(job), job.pseudocount, job.sources.scale)
    end_batch!(job)
end

function end_batch!(job::EMJob)
    job.position = batch_end(job)
    return nothing
end

"Runs a job to its end and returns the mean log-likelihood of the last epoch."
finish!(job::EMJob) = run_epochs!(job)

function run_epochs!(job)
    mean = NaN
    while job.epoch < job.epochs
        mean = advance!(job)[3]
    end
    return mean
end
