# What follows for each sample from its posterior flows: the entropy of the choices, moments of the variables, derivatives, and the flows.

"""
An answer for each sample, which a [`PosteriorJob`](@ref) writes down when the sample's pass is done: [`LatentEntropy`](@ref),
[`Moments`](@ref), [`Gradient`](@ref) or [`UnitFlows`](@ref).
"""
abstract type Answer end

"""
    LatentEntropy(out)

`out`, Float64 `(samples,)`: the Shannon entropy, in nats, of which child each sum takes, from the head down, given what is known. These choices
make an induced tree, and p(tree | x) is the product of its sums' posterior weights r = w p_child(x) / p_sum(x); what is chosen below the children
of a product is independent, given the choices above. So H(sum) = sum over c of r_c (H(c) - log r_c), H(product) is the sum of its
children's, and H(input) = 0: one pass up. It equals the flow into each sum times the entropy of its posterior weights, added up.
"""
struct LatentEntropy <: Answer
    out::Vector{Float64}
end

"""
    Moments(mean, variance, circuit)

`mean` and `variance`, Float64 `(variables, samples)`: those of each hidden variable given what is known, categories taken as numbers. The
posterior is a mixture of the variable's inputs, weighted by their flows. An observed variable has its value, and variance 0.
"""
struct Moments <: Answer
    mean::Matrix{Float64}
    variance::Matrix{Float64}
    of_inputs::Matrix{Float64}  # (2, units): mean and variance of each input, where nothing is said of its categories
end

function Moments(mean, variance, c::Circuit)
    of_inputs = zeros(2, num_units(c))
    for u in 1:num_units(c)
        isinput(c.kind[u]) && (of_inputs[:, u] .= moments(c, u))
        pause(10 + 5 * Int(c.categories[u]))
    end
    return Moments(mean, variance, of_inputs)
end

"""
    Gradient(out)

`out`, Float64 `(variables, samples)`, receives d log p(x) / d x_v: over the variable's Gaussian inputs, the sum of flow (mean - x) / deviation^2. A
hidden variable has 0: log p does not depend on it. Variables without Gaussian inputs, which have no derivative, keep what is there.
"""
struct Gradient <: Answer
    out::Matrix{Float64}
end

"""
    UnitFlows(out)

`out`, Float64 `(units, samples)`: the flow of each unit, the probability that the induced tree has it, given what is known.
"""
struct UnitFlows <: Answer
    out::Matrix{Float64}
end

goes_down(::Answer) = true
goes_down(::LatentEntropy) = false

const PASS_LANES = 16  # samples that go through the circuit together

"Less than this part of its children's largest value may be lost to rounding below the smallest numbers: such a sum has a scale of its own."
const LEAST_PART = 1e-200

"What a thread knows of the units for its samples, in lanes."
struct Pass
    value::Matrix{Float64}    # (lanes, units): log values
    more::Matrix{Float64}     # (lanes, units): on the way down the flows; of `LatentEntropy` the entropies
    part::Matrix{Float64}     # (lanes, children of a sum): their values over the largest of them
    other::Matrix{Float64}    # (lanes, children of a sum)
    top::Vector{Float64}
    total::Vector{Float64}
    sum::Vector{Float64}
end

function Pass(c::Circuit, widest)
    lanes = () -> zeros(PASS_LANES)
    return Pass(zeros(PASS_LANES, num_units(c)), zeros(PASS_LANES, num_units(c)), zeros(PASS_LANES, widest), zeros(PASS_LANES, widest),
                lanes(), lanes(), lanes())
end

"""
    PosteriorJob(plan, X, head_of, answer)

The `answer` for each sample n of `X`, [`Masked`](@ref) or [`SoftEvidence`](@ref), under head `head_of[n]`; exact, in Float64 and the log domain.
Throws an `ArgumentError` that names the sample where the evidence has probability 0.

Neighbouring sums over one list of children, as those of a dense block are, share their children's values: an edge costs a multiply-add for each
sample. `X`, `head_of` and the answer are kept, not copied. [`advance!`](@ref) does the work, piece by piece.
"""
mutable struct PosteriorJob{D<:Query,A<:Answer}
    circuit::Circuit
    X::D
    head_of::Vector{Int32}
    answer::A
    runs::Vector{UnitRange{Int}}   # sums that share a list of children; other units are alone
    parts::Vector{UnitRange{Int}}  # of the runs, each of about `LARGE` edges
    passes::Vector{Pass}           # of each thread
    position::Int                  # finished samples
end

function PosteriorJob(plan::Plan, X::Query, head_of, answer::Answer)
    check_query(plan, X, head_of, samples_of(answer))
    c = plan.circuit
    runs, parts, widest = sum_runs(c)
    passes = map(_ -> (pause(); Pass(c, widest)), 1:Threads.nthreads())
    return PosteriorJob(c, X, Vector{Int32}(head_of), answer, runs, parts, passes, 0)
end

samples_of(a::Union{LatentEntropy,Gradient,UnitFlows}) = size(a.out, ndims(a.out))
samples_of(a::Moments) = size(a.mean, 2)

"The runs of units, parts of these, and the most children of a sum."
function sum_runs(c::Circuit)
    runs, parts, first_unit, first_run, size, widest = UnitRange{Int}[], UnitRange{Int}[], 1, 1, 0, 1
    for u in 1:num_units(c)
        count = length(edges(c, u))
        c.kind[u] == SUM && (widest = max(widest, count))
        size += 1 + count
        shares = u < num_units(c) && c.kind[u] == c.kind[u + 1] == SUM && c.list[u] == c.list[u + 1]
        pause(10)
        shares && continue
        push!(runs, first_unit:u)
        first_unit = u + 1
        if size >= LARGE || u == num_units(c)
            push!(parts, first_run:length(runs))
            first_run, size = length(runs) + 1, 0
        end
    end
    return runs, parts, widest
end

function advance!(job::PosteriorJob, seconds::Real=Inf)
    started, N, threads = time(), num_samples(job.X), length(job.passes)
    at_once, large = threads * PASS_LANES, length(job.parts) > 1
    while job.position < N
        began, skip, last = time(), job.position, min(job.position + at_once, N)
        impossible = zeros(Int, threads)
        if large  # all threads through a part, then a pause
            starts = [skip + (t - 1) * PASS_LANES + 1 for t in 1:threads]
            in_parts(work, parts) = for part in parts
                Threads.@threads for t in 1:threads
                    starts[t] <= last && work(t, part)
                end
                pause()
            end
            in_parts((t, part) -> go_up!(job, t, part, starts[t], last), job.parts)
            for t in 1:threads
                starts[t] <= last && (impossible[t] = begin_down!(job, t, starts[t], last))
            end
            refuse_impossible(job, impossible)
            goes_down(job.answer) && in_parts((t, part) -> go_down!(job, t, part), reverse(job.parts))
            in_parts((t, _) -> write_answers!(job, t, starts[t], last), 1:1)
        else
            Threads.@threads for t in 1:threads
                for first in skip + (t - 1) * PASS_LANES + 1:threads * PASS_LANES:last
                    impossible[t] > 0 && break
                    go_up!(job, t, job.parts[1], first, last)
                    impossible[t] = begin_down!(job, t, first, last)
                    impossible[t] > 0 && break
                    goes_down(job.answer) && go_down!(job, t, job.parts[1])
                    write_answers!(job, t, first, last)
                end
            end
            refuse_impossible(job, impossible)
        end
        job.position = last
        large || time() - began < SHARE && (at_once *= 2)
        time() - started > seconds && break
    end
    return job.position
end

function refuse_impossible(job, impossible)
    any(>(0), impossible) || return
    n = minimum(filter(>(0), impossible))
    no_evidence(n, job.head_of[n])
end

"The log values of the units of a part, in lane s for sample `first + s - 1`; lanes beyond the last sample repeat it."
function go_up!(job::PosteriorJob, t::Int, part, first::Int, last::Int)
    c, pass, value = job.circuit, job.passes[t], job.passes[t].value
    for run in view(job.runs, part)
        u = run.start
        if c.kind[u] == SUM
            sums_up!(pass, c, run)
            job.answer isa LatentEntropy && entropies_up!(pass, c, run)
        elseif c.kind[u] == PRODUCT
            add_up!(value, c, u)
            job.answer isa LatentEntropy && add_up!(pass.more, c, u)
        else
            for s in 1:PASS_LANES
                value[s, u] = log_input(c, u, job.X, min(first + s - 1, last))
            end
            job.answer isa LatentEntropy && (pass.more[:, u] .= 0)
        end
    end
end

function add_up!(of::Matrix{Float64}, c::Circuit, u)
    @inbounds begin
        for s in 1:PASS_LANES
            of[s, u] = 0
        end
        for v in children(c, u), s in 1:PASS_LANES
            of[s, u] += of[s, v]
        end
    end
end

"The values of a run's children over the largest, whose logarithm goes to `top`; where all are 0, that is 0."
function scale_children!(pass::Pass, c::Circuit, run)
    value, part, top = pass.value, pass.part, pass.top
    vs = children(c, run.start)
    @inbounds begin
        fill!(top, -Inf)
        for v in vs, s in 1:PASS_LANES
            top[s] = max(top[s], value[s, v])
        end
        for s in 1:PASS_LANES
            top[s] = top[s] > -Inf ? top[s] : 0.0
        end
        for (j, v) in enumerate(vs), s in 1:PASS_LANES
            part[s, j] = exp(value[s, v] - top[s])
        end
    end
    return vs
end

"Fills `total` with what the sum `u` makes of the scaled columns of `of`, one for each of its children."
@inline function weigh!(total::Vector{Float64}, of::Matrix{Float64}, c::Circuit, u)
    @inbounds begin
        fill!(total, 0)
        for (j, e) in enumerate(edges(c, u))
            w = Float64(c.weight[e])
            @simd for s in 1:PASS_LANES
                total[s] += w * of[s, j]
            end
        end
    end
end

function sums_up!(pass::Pass, c::Circuit, run)
    scale_children!(pass, c, run)
    value, total = pass.value, pass.total
    for u in run
        weigh!(total, pass.part, c, u)
        @inbounds for s in 1:PASS_LANES
            value[s, u] = total[s] > LEAST_PART ? pass.top[s] + log(total[s]) : log_sum(value, c, u, s)
        end
    end
end

"The log value of sum `u` in one lane, on a scale of its own: that of its largest term."
function log_sum(value, c::Circuit, u, s)
    top = -Inf
    for e in edges(c, u)
        top = max(top, log(Float64(c.weight[e])) + value[s, child(c, u, e)])
    end
    top > -Inf || return -Inf
    total = 0.0
    for e in edges(c, u)
        total += exp(log(Float64(c.weight[e])) + value[s, child(c, u, e)] - top)
    end
    return top + log(total)
end

"With r = w part / total: H = sum of r (H_child - log r) = log total + (sum of w part (H_child - log part) - sum of w log w part) / total."
function entropies_up!(pass::Pass, c::Circuit, run)
    value, entropy, part, other, top = pass.value, pass.more, pass.part, pass.other, pass.top
    @inbounds for (j, v) in enumerate(children(c, run.start)), s in 1:PASS_LANES
        other[s, j] = part[s, j] > 0 ? part[s, j] * (entropy[s, v] - (value[s, v] - top[s])) : 0.0
    end
    for u in run
        weigh!(pass.total, part, c, u)
        weigh!(pass.sum, other, c, u)
        @inbounds for (j, e) in enumerate(edges(c, u))
            w = Float64(c.weight[e])
            w > 0 || continue
            own = w * log(w)
            for s in 1:PASS_LANES
                pass.sum[s] -= own * part[s, j]
            end
        end
        @inbounds for s in 1:PASS_LANES
            total = pass.total[s]
            found = total > LEAST_PART ? log(total) + pass.sum[s] / total : sum_entropy(value, entropy, c, u, s)
            entropy[s, u] = max(found, 0.0)
        end
    end
end

"The entropy of sum `u` in one lane, term by term."
function sum_entropy(value, entropy, c::Circuit, u, s)
    value[s, u] > -Inf || return 0.0
    found = 0.0
    for e in edges(c, u)
        v = child(c, u, e)
        log_r = log(Float64(c.weight[e])) + value[s, v] - value[s, u]
        log_r > -Inf && (found += exp(log_r) * (entropy[s, v] - log_r))
    end
    return found
end

"Starts the flows in the samples' heads; returns the first sample that is impossible, or 0."
function begin_down!(job::PosteriorJob, t::Int, first::Int, last::Int)
    pass, heads = job.passes[t], job.circuit.heads
    down = goes_down(job.answer)
    down && fill!(pass.more, 0)
    for s in 1:min(PASS_LANES, last - first + 1)
        head = heads[job.head_of[first + s - 1]]
        pass.value[s, head] > -Inf || return first + s - 1
        down && (pass.more[s, head] = 1)
    end
    return 0
end

function go_down!(job::PosteriorJob, t::Int, part)
    c, pass, flow = job.circuit, job.passes[t], job.passes[t].more
    for run in view(job.runs, reverse(part))
        u = run.start
        if c.kind[u] == SUM
            sums_down!(pass, c, run)
        elseif c.kind[u] == PRODUCT
            @inbounds for v in children(c, u), s in 1:PASS_LANES
                flow[s, v] += flow[s, u]
            end
        end
    end
end

function sums_down!(pass::Pass, c::Circuit, run)
    value, flow, part, sent, ratio = pass.value, pass.more, pass.part, pass.other, pass.total
    any(!iszero, view(flow, :, run)) || return
    vs = scale_children!(pass, c, run)
    @inbounds begin
        sent[:, 1:length(vs)] .= 0
        for u in run
            for s in 1:PASS_LANES
                relative = value[s, u] - pass.top[s]
                certain = relative > log(LEAST_PART)
                ratio[s] = certain ? flow[s, u] * exp(-relative) : 0.0
                certain || flow[s, u] == 0 || send_down!(flow, value, c, u, s)
            end
            for (j, e) in enumerate(edges(c, u))
                w = Float64(c.weight[e])
                @simd for s in 1:PASS_LANES
                    sent[s, j] += w * ratio[s]
                end
            end
        end
        for (j, v) in enumerate(vs), s in 1:PASS_LANES
            flow[s, v] += sent[s, j] * part[s, j]
        end
    end
end

"The flow of sum `u` in one lane to its children, term by term."
function send_down!(flow, value, c::Circuit, u, s)
    for e in edges(c, u)
        v = child(c, u, e)
        c.weight[e] > 0 && (flow[s, v] += flow[s, u] * exp(log(Float64(c.weight[e])) + value[s, v] - value[s, u]))
    end
end

function write_answers!(job::PosteriorJob, t::Int, first::Int, last::Int)
    for s in 1:min(PASS_LANES, last - first + 1)
        write_answer!(job.answer, job, job.passes[t], s, first + s - 1)
    end
end

write_answer!(answer::LatentEntropy, job, pass, s, n) = (answer.out[n] = pass.more[s, job.circuit.heads[job.head_of[n]]]; nothing)

write_answer!(answer::UnitFlows, job, pass, s, n) = (answer.out[:, n] .= view(pass.more, s, :); nothing)

function write_answer!(answer::Gradient, job, pass, s, n)
    c, X = job.circuit, job.X
    for u in 1:num_units(c)
        c.kind[u] == GAUSSIAN || continue
        i = c.variable[u]
        is_hidden(X, i, n) || pass.more[s, u] == 0 ||
            (answer.out[i, n] += pass.more[s, u] * (entry(c, u, 0) - observed(X, i, n)) / entry(c, u, 1)^2)
    end
end

"Means first, then squares about them: no digits cancel."
function write_answer!(answer::Moments, job, pass, s, n)
    c, X, mean, variance = job.circuit, job.X, answer.mean, answer.variance
    total = zeros(c.num_vars)
    mean[:, n] .= 0
    variance[:, n] .= 0
    for u in 1:num_units(c)
        f = passing(pass, c, X, u, s, n)
        f > 0 || continue
        total[c.variable[u]] += f
        mean[c.variable[u], n] += f * input_moments(answer, c, X, u, n)[1]
    end
    for i in 1:c.num_vars
        is_hidden(X, i, n) ? (mean[i, n] /= total[i] > 0 ? total[i] : uncovered(job.head_of[n], i)) : (mean[i, n] = observed(X, i, n))
    end
    for u in 1:num_units(c)
        f = passing(pass, c, X, u, s, n)
        f > 0 || continue
        i, (own, spread) = c.variable[u], input_moments(answer, c, X, u, n)
        variance[i, n] += f / total[i] * (spread + (own - mean[i, n])^2)
    end
end

"The flow of unit `u`, if it is an input of a hidden variable."
passing(pass, c, X, u, s, n) = isinput(c.kind[u]) && is_hidden(X, c.variable[u], n) ? pass.more[s, u] : 0.0

input_moments(answer, c, ::Masked, u, n) = (answer.of_inputs[1, u], answer.of_inputs[2, u])

function input_moments(answer, c, X::SoftEvidence, u, n)
    scale = log_scale(c, u, X, n)
    total = mean = square = 0.0
    for k in 0:c.categories[u] - 1
        p = share(c, u, X, k, n, scale)
        total += p
        mean += k * p
    end
    mean /= total
    for k in 0:c.categories[u] - 1
        square += (k - mean)^2 * share(c, u, X, k, n, scale)
    end
    return mean, square / total
end

"""
    posterior_answer(circuit, X, answer; head_of = ones)

The `answer` for all samples: see [`PosteriorJob`](@ref).
"""
function posterior_answer(c::Circuit, X::Query, answer::Answer; head_of=ones(Int32, num_samples(X)))
    advance!(PosteriorJob(Plan(c; soft=X isa SoftEvidence), X, head_of, answer))
    return answer
end
