# Backends: what evaluates circuits and learns them. Jobs (EM, joint EM, flows) are written on the verbs below, E-step apart from
# M-step, and know no more of a backend: threads, devices, processes and machines all add up statistics, then apply them once.

"""
    Backend

Where circuits are evaluated: `CPU()`, in tiles of samples on all threads, or [`Device`](@ref), on arrays of any kind. A backend implements, for a subtype of [`Engine`](@ref) of its own, the verbs

| verb | does |
|---|---|
| [`engine`](@ref)`(schedule, backend; soft, batch_size)` | buffers, and the parameters as this backend keeps them |
| [`log_likelihood!`](@ref)`(out, engine, X, heads)` | likelihoods; returns the samples whose arithmetic did not hold |
| [`head_values!`](@ref)`(values, scale, engine, X)` | the same of all heads, without logarithms |
| [`accumulate!`](@ref)`(engine, X, sources, order, range)` | adds flows up; returns the log-likelihood and such samples |
| [`add_exact!`](@ref)`(engine, X, sources, order, range, uncertain)` | adds the flows of such samples up, exactly |
| [`accumulate_posterior!`](@ref)`(posterior, engine, X, head_of)` | both, of soft evidence, and the posterior of what it is of |
| [`counts!`](@ref)`(counts, engine, scale)` | takes out what was added up: plain arrays that add up |
| [`apply!`](@ref)`(engine, [counts,] step, pseudocount)` | the M-step |
| [`apply_tied!`](@ref)`(engine, ties, step, pseudocount)` | the same, of sums some of whose parameters are one |
| [`limit_inputs!`](@ref)`(engine, allowed)` | takes values that are not allowed from the inputs |
| [`settle!`](@ref)`(engine)` | brings the circuit's parameters up to date |
| [`refresh!`](@ref)`(engine)` | takes the circuit's parameters anew, where others changed them |
| [`release!`](@ref)`(engine)` | gives back the room that it works in |
"""
abstract type Backend end

"A circuit on a backend, made by [`engine`](@ref)."
abstract type Engine end

"""
    engine(schedule, backend = CPU(); soft = false, batch_size = 0) -> Engine
    engine(circuit, backend = CPU(); ...)

The engine of a circuit, whose parameters it learns in place. `soft`: for [`SoftEvidence`](@ref). `batch_size`: where above 0, all EM
will be in batches of at most so many samples of plain data, each accumulated in one call.
"""
engine(c::Circuit, backend::Backend=CPU(); kwargs...) = engine(Schedule(c), backend; kwargs...)

"""
    log_likelihood!(out, engine, X, heads) -> uncertain

Fills `out`, `(heads, samples)`, with log p(x | head) in nats. Returns the samples, Int, whose arithmetic did not hold, so that what
`out` has of them means nothing: the caller has them done exactly ([`redo!`](@ref)).
"""
function log_likelihood! end

"""
    head_values!(values, scale, engine, X) -> uncertain

Fills `values`, Float32 `(heads, samples)`, and `scale`, Float64 `(samples,)`: p(x | head) is `values[head, n]` times exp(`scale[n]`), for
sums over heads, which need no logarithms. Returns the samples that it leaves uncertain, as [`log_likelihood!`](@ref) does.
"""
function head_values! end

"""
    accumulate!(engine, X, sources, order, range) -> (total, uncertain)

The E-step: adds the flows of samples `order[range]` to the engine's statistics. Returns the weighted sum of their log-likelihoods in
nats, and the places in `order` of the samples whose arithmetic did not hold: they are in neither, and left to [`add_exact!`](@ref).
The weights are those of `sources` less its `scale`.
"""
function accumulate! end

"""
    add_exact!(engine, X, sources, order, range, uncertain) -> (total, impossible)

Adds the flows of samples `order[uncertain]` of the same `range` exactly. Returns their weighted log-likelihood and those in `uncertain` that
have probability 0, and so no flow.
"""
function add_exact! end

"""
    accumulate_posterior!(posterior, engine, X::SoftEvidence, head_of) -> total

[`accumulate!`](@ref) of all samples of soft evidence, the uncertain ones exactly; `posterior`, Float32 `(categories, variables,
samples)`, all zeros, receives p(x_i = k | evidence), which are the flows into what the evidence comes from. A sample of probability 0
has none.
"""
function accumulate_posterior! end

"""
    counts!(counts, engine, scale = 1)

Adds the engine's statistics, times `scale`, to [`ExpectedCounts`](@ref), and clears them.
"""
function counts! end

"""
    apply!(engine, step, pseudocount)
    apply!(engine, counts, step, pseudocount, scale = scale_of(counts))

One EM step of size `step`: for a sum with edge flows F_e: E_e = F_e + pseudocount / #children and
theta <- (1 - step) theta + step E / sum(E); for a categorical input over C values the same with pseudocount / C; for a binomial over N
trials p <- (1 - step) p + step (sum F x + pseudocount N / 2) / (N (sum F + pseudocount)). A logistic becomes what fits the categorical of that step best
(`learn_logistic!`), inputs over numbers go by their moments (`learn_number!`). A unit without flow ([`has_flow`](@ref)) keeps
its parameters.

The flows are the engine's own statistics, which are cleared, or `counts`, from anywhere; `scale` is that of the weights behind them.
"""
function apply! end

"""
    apply_tied!(engine, ties, step, pseudocount)

[`apply!`](@ref) from the engine's own statistics, once tied edges have each other's ([`Ties`](@ref)); `nothing`: no edges are tied.
"""
apply_tied!(e::Engine, ::Nothing, step, pseudocount) = apply!(e, step, pseudocount)

apply_tied!(e::Engine, ties::Ties, step, pseudocount) =
    apply!(e, tie!(counts!(ExpectedCounts(circuit(e)), e), ties), step, pseudocount, 1.0)

"""
    limit_inputs!(engine, allowed)
    limit_inputs!(circuit, allowed)

Sets the probabilities of values that are not `allowed`, Bool `(categories, variables)`, to 0, and scales the others up. An input
that would lose everything gets equal shares.
"""
function limit_inputs!(e::Engine, allowed::AbstractMatrix{Bool})
    all(allowed) && return nothing
    settle!(e)
    limit_inputs!(circuit(e), allowed)
    return refresh!(e)
end

"""
    settle!(engine)

Brings the circuit's parameters up to date with the steps that were applied.
"""
function settle! end

"""
    refresh!(engine)

Takes the circuit's parameters anew: others changed them since the engine's own were settled.
"""
function refresh! end

"""
    release!(engine)

Gives back the room that the engine works in; it takes room again when it is next needed. Its statistics are lost.
"""
function release! end

"""
What a backend counts the pairs of a [`MutualInformationJob`](@ref) in. It implements

| verb | does |
|---|---|
| `pair_counter(backend, N, V, categories, incomplete)` | makes one; `incomplete`: values are missing |
| `counter_bytes(backend, N, categories, incomplete)` | what it takes of this machine's memory |
| `count_pairs!(counter, job)` | goes on with the job from its `next` variable for a while: [`note_pair!`](@ref) what is counted, and moves `next` past variables that are done |
"""
abstract type PairCounter end

"The scale that counts tell of their weights: about the largest count."
function scale_of(counts::ExpectedCounts)
    largest = reduce(max, counts.weight; init=reduce(max, counts.leaf; init=0.0))
    return largest > 0 ? exp2(Base.exponent(largest)) : 1.0
end

# What engines share: flows add up in single precision, `accumulated` samples of them, and before these are too many they go to
# double precision (`widen!`). Here that is `counts`, by `take_counts!(counts, engine, scale)`, which a backend adds.

"Makes room for the flows of `count` samples more."
function begin_accumulating!(e::Engine, count::Int)
    if 0 < e.accumulated && e.accumulated + count > SINGLE_PRECISION_SAMPLES
        widen!(e)
        e.accumulated = 0
    end
    e.accumulated += count
    return nothing
end

"Adds what single precision holds to what double precision does, and clears it."
function widen!(e::Engine)
    e.counts === nothing && (e.counts = ExpectedCounts(circuit(e)))
    take_counts!(e.counts, e, 1.0)
end

function counts!(counts::ExpectedCounts, e::Engine, scale::Real=1)
    take_counts!(counts, e, Float64(scale))
    e.counts === nothing || add!(counts, e.counts, Float64(scale))
    e.counts = nothing
    return counts
end

"[`accumulate!`](@ref), and what it leaves uncertain exactly: the total, and the places in `order` of the impossible samples."
function expect!(e::Engine, X, sources::Starts, order, range::UnitRange)
    total, uncertain = accumulate!(e, X, sources, order, range)
    isempty(uncertain) && return total, uncertain
    # (Called by its name, which is looked up now, it is compiled now, and not in a process that never comes here.)
    more, impossible = Base.invokelatest(add_exact!, e, X, sources, order, range, uncertain)::Tuple{Float64,Vector{Int}}
    return total + more, impossible
end

"What [`accumulate_posterior!`](@ref) leaves uncertain, exactly; the log-likelihood of these samples."
function exact_posterior!(posterior, e::Engine, X::SoftEvidence, head_of, uncertain)
    for n in uncertain
        posterior[:, :, n] .= 0f0
        Base.invokelatest(exact_marginals!, posterior, circuit(e), X, head_of, n)  # compiled only here
    end
    samples = 1:num_samples(X)
    more, _ = Base.invokelatest(add_exact!, e, X, Sources(head_of), samples, samples, uncertain)::Tuple{Float64,Vector{Int}}
    return more
end

"Cuts a range into pieces of at most `size`."
pieces(range::UnitRange, size::Integer) = (i:min(i + size - 1, last(range)) for i in first(range):size:last(range))
