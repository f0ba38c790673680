# The plan: how a circuit is evaluated. Units with one scope at one depth form a group; a group has one scale for each sample,
# and its edges to each child group form a block, dense (a matrix product) or sparse.

"The edges of a product group into one child group: unit k multiplies unit `index[k]` of it (`k` itself where `identity`)."
struct Factor
    child::Int
    identity::Bool
    index::Vector{Int32}
end

"""
The edges of a sum group into one child group. Dense: `weight[first + j - 1 + (k - 1) * stride]` is the weight of the child
group's unit j in sum k. Sparse (`stride == 0`): sum k has the edges `start[k]:start[k + 1] - 1`, to units `index`, with
weights at `edge`.
"""
struct Block
    child::Int
    first::Int
    stride::Int
    start::Vector{Int32}
    index::Vector{Int32}
    edge::Vector{Int64}
end

isdense(b::Block) = b.stride > 0

"A group of units; columns of the value and flow buffers (from 0) belong to it in the order of its units."
struct Group
    kind::UInt8
    units::Vector{Int32}
    variable::Int
    categories::Int
    param_start::Int        # inputs: of the group's table, (units, categories), and the step from category to category
    param_stride::Int
    factors::Vector{Factor}
    blocks::Vector{Block}
    value::Int              # first column in the value buffer
    flow::Int               # first column in the flow buffer
    shares_value::Bool      # an input that writes its values where its only parent, a product, continues with them
    shares_flow::Bool       # its flow is its only parent's flow
    has_head::Bool
end

width(g::Group) = length(g.units)

"""
    Plan(circuit; soft = false)

The order of work for a circuit: groups (children before parents), blocks, and where values and flows lie in a tile. With
`soft`, inputs keep their values, as soft evidence needs them for its statistics.

Throws an `ArgumentError` that names the unit for a sum over different scopes or a product over overlapping ones.
"""
struct Plan
    circuit::Circuit
    groups::Vector{Group}
    head_group::Vector{Int32}   # of each head: its group, and its place in it
    head_place::Vector{Int32}
    value_columns::Int
    flow_columns::Int
    widest::Int
    limits::Vector{Int32}       # of each variable: its number of categories (0 where no input looks at it)
    soft::Bool
end

function Plan(c::Circuit; soft::Bool=false)
    group_of, place, members = group_units(c)
    order = evaluation_order(c, group_of, members)
    rank = invperm(order)
    members = members[order]
    group_of = Int32[rank[g] for g in group_of]
    head_group = group_of[c.heads]
    limits = zeros(Int32, c.num_vars)
    for u in 1:num_units(c)
        c.kind[u] == INPUT || continue
        i = c.variable[u]
        limits[i] = limits[i] == 0 ? c.categories[u] : min(limits[i], c.categories[u])
    end

    factors = [m.kind == PRODUCT ? product_factors(c, m.units, group_of, place, members) : Factor[] for m in members]
    blocks = [m.kind == SUM ? sum_blocks(c, m.units, group_of, place, members) : Block[] for m in members]
    parents = [Tuple{Int,Bool}[] for _ in members]  # (parent group, whether it is a product that takes each unit once, in order)
    for g in eachindex(members)
        for f in factors[g]
            push!(parents[f.child], (g, f.identity))
        end
        for b in blocks[g]
            push!(parents[b.child], (g, false))
        end
    end

    # Columns. An input under one product shares that product's columns; a group with one product parent shares its flow.
    has_head = [g in head_group for g in eachindex(members)]
    lone(g) = !has_head[g] && length(parents[g]) == 1 && parents[g][1][2]
    value, flow = zeros(Int, length(members)), zeros(Int, length(members))
    lends = falses(length(members))
    shares_value, shares_flow = falses(length(members)), falses(length(members))
    value_columns = flow_columns = 0
    for g in reverse(eachindex(members))  # parents first: they own the shared columns
        owner = lone(g) ? parents[g][1][1] : 0
        if members[g].kind == INPUT && !soft && owner != 0 && !lends[owner]
            shares_value[g] = lends[owner] = true
            value[g] = value[owner]
        else
            value[g] = value_columns
            value_columns += length(members[g].units)
        end
        if owner != 0
            shares_flow[g] = true
            flow[g] = flow[owner]
        else
            flow[g] = flow_columns
            flow_columns += length(members[g].units)
        end
    end

    groups = [Group(m.kind, m.units, c.variable[m.units[1]], c.categories[m.units[1]], c.param_start[m.units[1]],
                    c.param_stride[m.units[1]], factors[g], blocks[g], value[g], flow[g], shares_value[g], shares_flow[g], has_head[g])
              for (g, m) in enumerate(members)]
    widest = maximum(width(g) for g in groups)
    return Plan(c, groups, head_group, place[c.heads], value_columns, flow_columns, widest, limits, soft)
end

struct Members
    kind::UInt8
    level::Int
    scope::Int
    units::Vector{Int32}
end

"Groups of units: inputs by their table, products by their child groups, sums by scope and depth."
function group_units(c::Circuit)
    n = num_units(c)
    members, scopes = Members[], Vector{Vector{Int32}}()
    scope_ids = Dict{Vector{Int32},Int}()
    input_groups, product_groups, sum_groups = Dict{NTuple{3,Int},Int}(), Dict{Vector{Int32},Int}(), Dict{NTuple{2,Int},Int}()
    group_of, place = zeros(Int32, n), zeros(Int32, n)
    function scope_id(scope)
        get!(scope_ids, scope) do
            push!(scopes, scope)
            length(scopes)
        end
    end
    function create(kind, level, scope)
        push!(members, Members(kind, level, scope, Int32[]))
        return length(members)
    end
    for u in 1:n
        if c.kind[u] == INPUT
            # Inputs of one variable belong together as long as their parameters lie side by side.
            key = (Int(c.variable[u]), Int(c.categories[u]), Int(c.param_stride[u]))
            g = get(input_groups, key, 0)
            if g == 0 || c.param_start[u] != c.param_start[members[g].units[1]] + length(members[g].units)
                g = input_groups[key] = create(INPUT, 0, scope_id(Int32[c.variable[u]]))
            end
        elseif c.kind[u] == PRODUCT
            key = sort!(Int32[group_of[v] for v in children(c, u)])
            g = get!(product_groups, key) do
                variables = sort!(reduce(vcat, [scopes[members[h].scope] for h in key]))
                for i in 2:length(variables)
                    variables[i] == variables[i - 1] &&
                        invalid(u, "a product over overlapping scopes: variable $(variables[i]) is in two of its children's")
                end
                create(PRODUCT, 1 + maximum(members[h].level for h in key), scope_id(variables))
            end
        else
            child_groups = unique(group_of[v] for v in children(c, u))
            scope = members[child_groups[1]].scope
            for h in child_groups
                members[h].scope == scope || invalid(u, "a sum over different scopes")
            end
            key = (scope, 1 + maximum(members[h].level for h in child_groups))
            g = get!(() -> create(SUM, key[2], scope), sum_groups, key)
        end
        push!(members[g].units, u)
        group_of[u], place[u] = g, length(members[g].units)
    end
    return group_of, place, members
end

"Groups depth first from the heads, children before parents: what a group needs was computed shortly before, and is in the cache."
function evaluation_order(c, group_of, members)
    below = [unique(group_of[v] for u in m.units for v in children(c, u)) for m in members]
    order, state, stack = Int[], zeros(UInt8, length(members)), Int[]
    for start in vcat(group_of[c.heads], eachindex(members))
        push!(stack, start)
        while !isempty(stack)
            g = stack[end]
            if state[g] == 0
                state[g] = 1
                append!(stack, h for h in reverse(below[g]) if state[h] == 0)
            else
                pop!(stack)
                state[g] == 1 && push!(order, g)
                state[g] = 2
            end
        end
    end
    return order
end

function product_factors(c, units, group_of, place, members)
    child_groups = sort!(Int32[group_of[v] for v in children(c, units[1])])
    slot = Dict(g => f for (f, g) in enumerate(child_groups))
    index = [Vector{Int32}(undef, length(units)) for _ in child_groups]
    for (k, u) in enumerate(units), v in children(c, u)
        index[slot[group_of[v]]][k] = place[v]
    end
    return [Factor(g, index[f] == 1:length(members[g].units), index[f]) for (f, g) in enumerate(child_groups)]
end

function sum_blocks(c, units, group_of, place, members)
    child_groups = unique(group_of[v] for u in units for v in children(c, u))
    blocks = dense_blocks(c, units, child_groups, group_of, place, members)
    isempty(blocks) || return blocks
    slot = Dict(g => b for (b, g) in enumerate(child_groups))
    start = [Int32[1] for _ in child_groups]
    index = [Int32[] for _ in child_groups]
    edge = [Int64[] for _ in child_groups]
    for u in units
        for e in edges(c, u)
            b = slot[group_of[c.child[e]]]
            push!(index[b], place[c.child[e]])
            push!(edge[b], e)
        end
        for b in eachindex(start)
            push!(start[b], length(index[b]) + 1)
        end
    end
    return [Block(g, 0, 0, start[b], index[b], edge[b]) for (b, g) in enumerate(child_groups)]
end

"Dense blocks, where every sum has all units of the child groups in the same order and their edges lie at one stride; else none."
function dense_blocks(c, units, child_groups, group_of, place, members)
    wanted = reduce(vcat, [members[g].units for g in child_groups])
    first_edge = c.child_start[units[1]]
    stride = length(units) > 1 ? c.child_start[units[2]] - first_edge : length(wanted)
    for (k, u) in enumerate(units)
        c.child_start[u] == first_edge + (k - 1) * stride && children(c, u) == wanted || return Block[]
    end
    offsets = cumsum(vcat(0, [length(members[g].units) for g in child_groups]))
    return [Block(g, first_edge + offsets[b], stride, Int32[], Int32[], Int64[]) for (b, g) in enumerate(child_groups)]
end
