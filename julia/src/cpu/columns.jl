# Where a tile of samples keeps what the schedule computes: columns of values and flows, shared and used again where they can be.

"Where a group lies in a tile: columns of the value and flow buffers, from 0, belong to it in the order of its units."
struct Columns
    value::Int              # first column in the value buffer
    flow::Int               # first column in the flow buffer
    exponent::Int           # its column of exponents; tables, which are not scaled, have one together
    shares_value::Bool      # an input that writes its values where its only parent, a product, continues with them
    shares_flow::Bool       # its flow is its only parent's flow
    first_sender::Int       # the parent that is the first, on the way down, to send it flow, over what lies in its columns; 0: none,
                            # its flow is there from the start, a head's, or it shares its parent's
end

"Whether a group's flow is there from the start: a head's, or none."
starts_flow(at::Columns) = at.first_sender == 0 && !at.shares_flow

"""
    Plan(circuit; soft = false, fuse = true)
    Plan(schedule; soft = false)

How the CPU goes through a [`Schedule`](@ref): where values and flows lie in a tile. With `soft`, inputs keep their values, as soft
evidence needs them for its statistics. Throws what [`Schedule`](@ref) throws.
"""
struct Plan
    schedule::Schedule
    circuit::Circuit            # the schedule's
    groups::Vector{Group}       # the schedule's
    columns::Vector{Columns}    # of each group
    value_columns::Int
    flow_columns::Int
    soft::Bool
end

Plan(c::Circuit; soft::Bool=false, fuse::Bool=true) = Plan(Schedule(c; fuse=fuse); soft=soft)

function Plan(schedule::Schedule; soft::Bool=false)
    groups = schedule.groups
    parents = [Tuple{Int,Bool}[] for _ in groups]  # (parent group, whether it is a product that takes each unit once, in order)
    for (g, group) in enumerate(groups)
        for f in (group.pairs === nothing ? group.factors : Factor[])
            push!(parents[f.child], (g, f.identity))
        end
        for b in group.blocks, child in read_groups(groups, b)
            push!(parents[child], (g, false))
        end
    end
    # An input under one product shares that product's columns; a group with one product parent shares its flow.
    has_head = falses(length(groups))
    has_head[schedule.head_group] .= true
    value, holder = zeros(Int, length(groups)), collect(eachindex(groups))  # holder: whose flow columns a group has
    lends, shares_value, value_columns = falses(length(groups)), falses(length(groups)), 0
    for g in reverse(eachindex(groups))  # parents first: they own the shared columns
        owner = !has_head[g] && length(parents[g]) == 1 && parents[g][1][2] ? parents[g][1][1] : 0
        # (Binomials keep their values: what those lack is looked for in them.)
        if has_table(groups[g].kind) && groups[g].kind != BINOMIAL && !soft && owner != 0 && !lends[owner]
            shares_value[g] = lends[owner] = true
            value[g] = value[owner]
        else
            value[g] = value_columns
            value_columns += kept_width(groups[g])
        end
        owner != 0 && (holder[g] = holder[owner])
    end
    senders = [isempty(found) ? 0 : maximum(first, found) for found in parents]
    senders[has_head] .= 0
    flow, flow_columns = place_flows(kept_width.(groups), senders, holder)
    columns, scaled = Columns[], 0
    for (g, group) in enumerate(groups)
        has_table(group.kind) || (scaled += 1)
        shares_flow = holder[g] != g
        push!(columns, Columns(value[g], flow[g], has_table(group.kind) ? 0 : scaled, shares_value[g], shares_flow,
                               shares_flow ? 0 : senders[g]))
    end
    return Plan(schedule, schedule.circuit, groups, columns, value_columns, flow_columns, soft)
end

"""
The first flow column (from 0) of each group, and how many columns there are. On the way down, a flow is needed from when its
first sender is worked on until the last group that holds it was: then its columns are given to others, so that flows take
little room and stay in the cache.
"""
function place_flows(widths, senders, holder)
    flow, used = zeros(Int, length(widths)), Bool[]
    born, dies = [Int[] for _ in widths], [Int[] for _ in widths]
    last = copy(holder)  # to be worked on: groups come in falling order
    for g in eachindex(widths)
        last[holder[g]] = min(last[holder[g]], g)
    end
    for g in eachindex(widths)
        holder[g] == g || continue
        push!(dies[last[g]], g)
        senders[g] == 0 ? (flow[g] = take_columns!(used, widths[g])) : push!(born[senders[g]], g)
    end
    for g in reverse(eachindex(widths))
        for child in born[g]
            flow[child] = take_columns!(used, widths[child])
        end
        for done in dies[g]
            used[flow[done] + 1:flow[done] + widths[done]] .= false
        end
    end
    return flow[holder], length(used)
end

"The first `count` columns in a row that are not in use, which they are from now on."
function take_columns!(used::Vector{Bool}, count::Int)
    first, free = 0, 0
    while free < count && first + free < length(used)
        used[first + free + 1] ? (first += free + 1; free = 0) : (free += 1)
    end
    append!(used, fill(false, max(0, first + count - length(used))))
    used[first + 1:first + count] .= true
    return first
end
