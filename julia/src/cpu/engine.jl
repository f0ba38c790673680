# The CPU's engine: the verbs of backends.jl, tile by tile on all threads.

"The CPU, all of Julia's threads, each with tiles and statistics of its own."
struct CPU <: Backend end

"""
A circuit on the CPU. Its parameters are the circuit's own, but for those of inputs that `inputs` keep between steps. Flows are summed in
single precision in `statistics`, one of each thread, and every few thousand samples in double precision in `counts`. All but the plan is
made when it is first needed.
"""
mutable struct CPUEngine <: Engine
    plan::Plan
    inputs::Union{Nothing,BatchInputs}
    workspaces::Vector{Workspace}
    statistics::Vector{Statistics}
    wide::Vector{WideWorkspace}             # one of each thread, for the samples of a batch that are done exactly
    accumulated::Int                        # samples in `statistics`
    counts::Union{Nothing,ExpectedCounts}   # of samples before those, if any
end

engine(schedule::Schedule, ::CPU; kwargs...) = CPUEngine(Plan(schedule; soft=get(kwargs, :soft, false)); batch_size=get(kwargs, :batch_size, 0))

CPUEngine(plan::Plan; batch_size::Int=0) =
    CPUEngine(plan, suit_batch(plan.schedule, batch_size) ? BatchInputs(plan.schedule, batch_size) : nothing, Workspace[],
              Statistics[], WideWorkspace[], 0, nothing)

circuit(plan::Plan) = plan.circuit
circuit(e::CPUEngine) = circuit(e.plan)
schedule(e::CPUEngine) = e.plan.schedule
is_soft(e::CPUEngine) = e.plan.soft

"Makes the room to accumulate in, where there is none."
function prepare!(e::CPUEngine)
    for _ in length(e.workspaces) + 1:Threads.nthreads()
        push!(e.workspaces, Workspace(e.plan; flows=true, inputs=e.inputs))
        push!(e.statistics, Statistics(circuit(e); leaf=e.inputs === nothing))
        pause()
    end
end

function release!(e::CPUEngine)
    empty!(e.workspaces)
    empty!(e.statistics)
    empty!(e.wide)
    e.accumulated, e.counts = 0, nothing
    return nothing
end

"""
How many samples to accumulate in one call, so that it ends soon: fewer of a large circuit, but always the same for one engine, because
sums depend on it in their last digits. Each thread gets whole tiles, and the same ones as of any larger number of such calls at once.
"""
samples_at_once(e::CPUEngine) =
    e.inputs === nothing ? TILE * Threads.nthreads() * clamp(2^22 ÷ max(num_edges(circuit(e)), 1), 1, 16) : e.inputs.batch_size

"""
Batches of EM between two calls of [`settle!`](@ref), where the clock is read: fewer of a large circuit, but always the same for one
engine, because parameters depend on it in their last digits.
"""
function steps_at_once(e::CPUEngine, batch_size::Int)
    e.inputs === nothing && return 1
    c = circuit(e)
    return clamp(2^29 ÷ (batch_size * num_edges(c) + 8 * length(c.leaf)), 1, 64)
end

log_likelihood!(out::AbstractMatrix{<:AbstractFloat}, e::CPUEngine, X::Data, heads) =
    uncertain_samples(e, X) do ws, n, s
        for (i, head) in enumerate(heads)
            out[i, n] = head_log_value(ws, e.plan, X, head, s)
        end
        return all(i -> isfinite(out[i, n]), axes(out, 1))
    end

head_values!(values::Matrix{Float32}, scale::Vector{Float64}, e::CPUEngine, X::Data) =
    uncertain_samples(e, X) do ws, n, s
        scale[n] = take_head_values!(values, n, ws, e.plan, axes(values, 1), s) + offset(X, n)
        return !isnan(scale[n])
    end

"Evaluates all samples; those for which `take!(workspace, sample, lane)` says no, that what it took of their values is not certain."
function uncertain_samples(take!::F, e::CPUEngine, X::Data) where {F}
    settle!(e)
    N, plan = num_samples(X), e.plan
    tiles, threads = cld(N, TILE), Threads.nthreads()
    uncertain = [Int[] for _ in 1:threads]
    Threads.@threads for t in 1:threads
        ws = Workspace(plan; flows=false)
        GC.@preserve ws plan X for tile in t:threads:tiles
            count = load_samples!(ws, 1:N, (tile - 1) * TILE + 1, N)
            forward!(ws, plan, X)
            for s in 1:count
                take!(ws, ws.samples[s], s) || push!(uncertain[t], ws.samples[s])
            end
        end
    end
    return reduce(vcat, uncertain)
end

"Puts the values of `heads` of lane `s` into column `n`, and returns their common scale in nats; NaN where one of them is uncertain."
function take_head_values!(values, n::Int, ws::Workspace, plan::Plan, heads, s::Int)
    top = typemin(Int32)
    @inbounds for head in heads
        top = max(top, ws.exponents[TILE * plan.columns[plan.schedule.head_group[head]].exponent + s])
    end
    @inbounds for head in heads
        gi = Int(plan.schedule.head_group[head])
        value = ws.values[TILE * (plan.columns[gi].value + plan.schedule.head_place[head] - 1) + s]
        value > 0 && dwarfs_loss(ws, plan, gi, Int(plan.schedule.head_place[head]), s, value) || return NaN
        exponent = ws.exponents[TILE * plan.columns[gi].exponent + s]
        values[head, n] = exponent == top ? value : ldexp(value, exponent - top)
    end
    return top * log(2.0)
end

accumulate!(e::CPUEngine, X::Data, sources::Starts, order, range::UnitRange) =
    accumulate!(e, X, sources, order, range) do stat, ws, gi, position, count
        e.inputs === nothing ? input_statistics!(stat, ws, e.plan, gi, X) : input_flows!(e.inputs, ws, e.plan, gi, position, count)
    end

"""
As above; `at_inputs(statistics, workspace, group, position, count)` is to add the flows of a group of inputs for a tile of `count`
samples, the first of which is at `position`, from 0, of the range.
"""
function accumulate!(at_inputs::F, e::CPUEngine, X::Data, sources::Starts, order, range::UnitRange) where {F}
    prepare!(e)
    begin_accumulating!(e, length(range))
    e.inputs === nothing || begin_batch!(e.inputs, X, view(order, range))
    plan, threads, tiles = e.plan, length(e.statistics), cld(length(range), TILE)
    totals, uncertain = zeros(threads), [Int[] for _ in 1:threads]
    Threads.@threads for t in 1:threads
        ws, stat = e.workspaces[t], e.statistics[t]
        GC.@preserve ws stat plan X for tile in t:threads:tiles
            position = (tile - 1) * TILE
            count = load_samples!(ws, order, first(range) + position, last(range))
            forward!(ws, plan, X)
            totals[t] += flows!(stat, ws, plan, X, sources, count) do gi
                at_inputs(stat, ws, gi, position, count)
            end
            for s in 1:count
                ws.live[s] || push!(uncertain[t], first(range) + position + s - 1)
            end
        end
    end
    return sum(totals), reduce(vcat, uncertain)
end

function accumulate_posterior!(posterior::Array{Float32,3}, e::CPUEngine, X::SoftEvidence, head_of::Vector{Int32})
    N, sources, plan, c = num_samples(X), Sources(head_of), e.plan, circuit(e)
    total, uncertain = accumulate!(e, X, sources, 1:N, 1:N) do stat, ws, gi, _, count
        input_statistics!(stat, ws, plan, gi, X)  # it leaves the derivatives in the place of the values, and the evidence's room free
        add_marginals!(posterior, ws, plan, gi, X, value_columns(ws, plan, gi), ws.evidence, count)
    end
    is_uncertain = fill(false, N)
    is_uncertain[uncertain] .= true
    Threads.@threads for n in 1:N
        is_uncertain[n] || finish_marginals!(posterior, c, X, n, head_of)
    end
    isempty(uncertain) && return total
    return total + exact_posterior!(posterior, e, X, head_of, uncertain)
end

function add_exact!(e::CPUEngine, X::Data, sources::Starts, order, range::UnitRange, uncertain::Vector{Int})
    threads = min(length(e.statistics), cld(length(uncertain), LANES))
    totals, impossible = zeros(threads), [Int[] for _ in 1:threads]
    while length(e.wide) < threads
        push!(e.wide, WideWorkspace(schedule(e); flows=true, inputs=e.inputs))
    end
    Threads.@threads for t in 1:threads
        ws, stat = e.wide[t], e.statistics[t]
        for start in 1 + (t - 1) * LANES:threads * LANES:length(uncertain)
            places = view(uncertain, start:min(start + LANES - 1, length(uncertain)))
            total, possible = add_flows!(stat, ws, schedule(e), X, sources, order[places], places .- first(range))
            totals[t] += total
            append!(impossible[t], places[.!possible])
        end
    end
    return sum(totals), reduce(vcat, impossible)
end

"Adds what single precision holds, times `scale`, to `counts`, and clears it."
function take_counts!(counts::ExpectedCounts, e::CPUEngine, scale::Float64)
    e.inputs === nothing || add_counts!(counts, e.inputs, schedule(e), scale)
    for stat in e.statistics
        take_counts!(counts, circuit(e), stat, scale)
    end
    e.accumulated = 0
end

function apply!(e::CPUEngine, step::Real, pseudocount::Real)
    prepare!(e)
    inputs = e.inputs
    if e.counts !== nothing
        apply!(e, counts!(ExpectedCounts(circuit(e)), e), step, pseudocount, 1.0)
    elseif inputs === nothing
        m_step!(schedule(e), e.statistics, Float32(step), Float32(pseudocount))
    else
        apply_batch!(e, inputs, inputs.X, Float32(step), Float32(pseudocount))
        empty!(inputs.samples)
    end
    e.accumulated = 0
    return nothing
end

apply_batch!(e::CPUEngine, inputs::BatchInputs, X::Union{AbstractMatrix,Masked}, step::Float32, pseudocount::Float32) =
    m_step!(schedule(e), e.statistics, step, pseudocount) do gi, t, shares, s, a
        schedule(e).groups[gi].kind == CATEGORICAL && apply_batch!(inputs, schedule(e), gi, X, inputs.samples, t, shares, s, a)
    end

function apply!(e::CPUEngine, counts::ExpectedCounts, step::Real, pseudocount::Real, scale::Real=scale_of(counts))
    settle!(e)
    m_step!(schedule(e), counts, Float64(step), Float64(pseudocount), pseudocount > 0 ? 0.0 : LEAST_FLOW * Float64(scale))
    return nothing
end

settle!(e::CPUEngine) = e.inputs === nothing ? nothing : settle!(e.inputs, schedule(e))

refresh!(::CPUEngine) = nothing  # whose parameters, once they are settled, are the circuit's own
