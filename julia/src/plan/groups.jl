# Units with one scope at one depth form a group; a group has one scale for each sample, and its edges to each child group form
# a block, dense (a matrix product) or sparse. Nothing here knows what evaluates them.

"""
The edges of a product group into one child group: unit k multiplies unit `index[k]` of it, or, where `identity`, `k` itself.
"""
struct Factor
    child::Int
    identity::Bool
    index::Vector{Int32}
end

"""
The edges of a sparse block as the units of one side have them: unit k has `start[k]:start[k + 1] - 1`, which lead to units `index`
of the other side, and whose weights lie `edge` after the block's `first`.
"""
struct EdgeList
    start::Vector{Int32}
    index::Vector{Int32}
    edge::Vector{Int32}
end

"""
The edges of a sum group into one child group. Dense: `weight[first + j - 1 + (k - 1) * stride]` is the weight of the child
group's unit j in sum k. Sparse (`stride == 0`): the edges of each sum, and, for the way down, those of each child.
"""
struct Block
    child::Int
    first::Int
    stride::Int
    of_sums::EdgeList
    of_children::EdgeList
end

"""
All pairs of some units of two groups, as the products of a group: product (i - 1) * length(fast) + j is of `slow[i]` of `slow_group` and
`fast[j]` of `fast_group`. (Never changed: it is mutable so that the many groups without it have room for a reference only.)
"""
mutable struct Pairs
    slow_group::Int
    slow::UnitRange{Int}
    fast_group::Int
    fast::UnitRange{Int}
end

const NO_EDGES = EdgeList(Int32[], Int32[], Int32[])

isdense(b::Block) = b.stride > 0

"A group of units. Inputs of one group look at one variable, and their parameters lie side by side."
struct Group
    kind::UInt8
    units::Vector{Int32}
    variable::Int
    categories::Int
    param_start::Int        # inputs: of the group's table, (units, categories), and the step from category to category
    param_stride::Int
    factors::Vector{Factor}
    blocks::Vector{Block}
    pairs::Union{Nothing,Pairs}  # products that only dense blocks look at, which go by these: the products' own values are never there
    nested::Bool                 # products that are factors of other products: those need them scaled
end

width(g::Group) = length(g.units)

"Units whose values and flows are kept."
kept_width(g::Group) = g.pairs === nothing ? width(g) : 0

"The groups whose values a block reads."
read_groups(groups::Vector{Group}, b::Block) = read_groups(groups[b.child].pairs, b.child)
read_groups(pairs::Pairs, child) = (pairs.slow_group, pairs.fast_group)
read_groups(::Nothing, child) = (child,)

struct Members
    kind::UInt8
    level::Int
    scope::Int
    units::Vector{Int32}
end

"Of each unit its group and its place in it; and the groups, in the order of work."
function ordered_groups(c::Circuit)
    group_of, place, members = group_units(c)
    order = evaluation_order(c, group_of, members)
    return Int32.(invperm(order))[group_of], place, members[order]
end

"""
Groups of units: inputs by their table, products by their child groups, sums by scope, depth and any child group in common: those
of different trees of a mixture stay apart, and so dense.
"""
function group_units(c::Circuit)
    n = num_units(c)
    members, scopes = Members[], Vector{Int32}[]
    scope_ids, groups = Dict{Vector{Int32},Int}(), Dict{Vector{Int32},Int}()  # groups by what their units have in common
    group_of, place = zeros(Int32, n), zeros(Int32, n)
    for u in 1:n
        pause(200 + 10 * length(edges(c, u)))
        keys = group_keys(c, u, group_of, members)
        g = 0
        for key in keys
            g == 0 && (g = get(groups, key, 0))
        end
        # Inputs of one variable belong together only as long as their parameters lie side by side.
        if g != 0 && isinput(c.kind[u]) && c.param_start[u] != c.param_start[members[g].units[1]] + length(members[g].units)
            g = 0
        end
        if g == 0
            scope, level = scope_and_level(c, u, group_of, members, scopes)
            id = get(scope_ids, scope, 0)
            if id == 0
                push!(scopes, scope)
                id = scope_ids[scope] = length(scopes)
            end
            push!(members, Members(c.kind[u], level, id, Int32[]))
            g = length(members)
        end
        for key in keys
            groups[key] = g
        end
        push!(members[g].units, u)
        group_of[u], place[u] = g, length(members[g].units)
    end
    return group_of, place, members
end

"What units of one group have in common: any one of the keys."
function group_keys(c, u, group_of, members)
    kind = Int32(c.kind[u])
    isinput(c.kind[u]) && return [Int32[kind, c.variable[u], c.categories[u], c.param_stride[u]]]
    c.kind[u] == PRODUCT && return [pushfirst!(child_groups(c, u, group_of), kind)]
    level = Int32(0)
    scope = members[group_of[first(children(c, u))]].scope
    found = Int32[]
    for v in children(c, u)
        g = group_of[v]
        members[g].scope == scope || invalid(u, "a sum over different scopes")
        level = max(level, Int32(members[g].level))
        (isempty(found) || found[end] != g) && !(g in found) && push!(found, g)
    end
    return [Int32[kind, scope, level, g] for g in found]
end

"The groups of a product's children, in order."
function child_groups(c, u, group_of)
    found = Int32[]
    for v in children(c, u)
        push!(found, group_of[v])
    end
    return sort!(found)
end

function scope_and_level(c, u, group_of, members, scopes)
    isinput(c.kind[u]) && return Int32[c.variable[u]], 0
    level = 0
    for v in children(c, u)
        level = max(level, members[group_of[v]].level)
    end
    c.kind[u] == SUM && return scopes[members[group_of[first(children(c, u))]].scope], level + 1
    scope = Int32[]
    for v in children(c, u)
        append!(scope, scopes[members[group_of[v]].scope])
    end
    sort!(scope)
    for i in 2:length(scope)
        scope[i] == scope[i - 1] &&
            invalid(u, "a product over overlapping scopes: variable $(scope[i]) is in two of its children's")
    end
    return scope, level + 1
end

"Groups depth first from the heads, children before parents: what a group needs was computed shortly before, and is in the cache."
function evaluation_order(c, group_of, members)
    order, state, stack = Int[], zeros(UInt8, length(members)), Int[]
    for start in vcat(group_of[c.heads], 1:length(members))
        push!(stack, start)
        while !isempty(stack)
            g = stack[end]
            if state[g] == 0
                state[g] = 1
                for u in reverse(members[g].units), e in reverse(edges(c, u))
                    h = group_of[child(c, u, e)]
                    state[h] == 0 && stack[end] != h && push!(stack, h)
                    pause(2)
                end
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
    factors = Factor[]
    for g in child_groups(c, units[1], group_of)
        push!(factors, Factor(g, false, zeros(Int32, length(units))))
    end
    for (k, u) in enumerate(units), v in children(c, u)
        for f in factors
            f.child == group_of[v] && (f.index[k] = place[v])
        end
        pause(2 * length(factors))
    end
    in_order(f) = f.index == 1:length(members[f.child].units)
    return [in_order(f) ? Factor(f.child, true, Int32[]) : f for f in factors]
end

"""
For each group the [`Pairs`](@ref) that its units are, or nothing: only for products that are no heads, and that nothing but dense
blocks looks at. The sum over all pairs is then a product of two vectors and a matrix, as in the einsum layers of Peharz et al. 2020.
"""
function pairs_of_groups(factors, blocks, head_groups)
    found = Union{Nothing,Pairs}[may_be_pairs(own) ? Base.invokelatest(all_pairs, own) : nothing for own in factors]
    found[head_groups] .= nothing
    for own in factors, f in own
        found[f.child] = nothing
    end
    for own in blocks, b in own
        isdense(b) || (found[b.child] = nothing)
    end
    return found
end

may_be_pairs(factors::Vector{Factor}) = length(factors) == 2 && !any(f -> f.identity, factors)

"The pairs, of more than one unit on each side, that products with these two factors are; or nothing."
function all_pairs(factors::Vector{Factor})
    for (slow, fast) in (factors, reverse(factors))
        count = something(findfirst(!=(slow.index[1]), slow.index), length(slow.index) + 1) - 1
        1 < count < length(slow.index) && length(slow.index) % count == 0 || continue
        own, other = range(slow.index[1], length=length(slow.index) ÷ count), range(fast.index[1], length=count)
        every = enumerate(Iterators.product(other, own))
        all(((at, (j, i)),) -> slow.index[at] == i && fast.index[at] == j, every) && return Pairs(slow.child, own, fast.child, other)
    end
    return nothing
end

function sum_blocks(c, units, group_of, place, members)
    found = Int32[]  # child groups, in the order of their first edge
    for u in units, v in children(c, u)
        (isempty(found) || found[end] != group_of[v]) && !(group_of[v] in found) && push!(found, group_of[v])
        pause(2)
    end
    blocks = dense_blocks(c, units, found, members)
    isempty(blocks) || return blocks
    sums, places, edge_places = [Int32[] for _ in found], [Int32[] for _ in found], [Int[] for _ in found]  # of each block's edges
    for (k, u) in enumerate(units), e in edges(c, u)
        v = child(c, u, e)
        b = findfirst(==(group_of[v]), found)
        push!(sums[b], k)
        push!(places[b], place[v])
        push!(edge_places[b], e)
        pause(10)
    end
    return [sparse_block(g, sums[b], places[b], edge_places[b], length(units), length(members[g].units)) for (b, g) in enumerate(found)]
end

function sparse_block(g, sums, children, places, num_sums, num_children)
    first = minimum(places)
    offsets = Int32.(places .- first)
    return Block(g, first, 0, edge_list(sums, children, offsets, num_sums), edge_list(children, sums, offsets, num_children))
end

"The edges as the `count` units of one side have them; `own` and `other` are each edge's two units."
function edge_list(own, other, offsets, count)
    start = ones(Int32, count + 1)
    for k in own
        start[k + 1] += 1
    end
    for k in 1:count
        start[k + 1] += start[k] - 1
    end
    next, index, edge = copy(start), Vector{Int32}(undef, length(own)), Vector{Int32}(undef, length(own))
    for (i, k) in enumerate(own)
        index[next[k]], edge[next[k]] = other[i], offsets[i]
        next[k] += 1
        pause(5)
    end
    return EdgeList(start, index, edge)
end

"Dense blocks, where every sum has all units of the child groups in the same order and their edges lie at one stride; else none."
function dense_blocks(c, units, child_groups, members)
    wanted = Int32[]
    for g in child_groups
        append!(wanted, members[g].units)
    end
    first_edge = c.child_start[units[1]]
    stride = length(units) > 1 ? c.child_start[units[2]] - first_edge : length(wanted)
    for (k, u) in enumerate(units)
        pause(10 + length(wanted))
        c.child_start[u] == first_edge + (k - 1) * stride && children(c, u) == wanted || return Block[]
    end
    blocks = Block[]
    for g in child_groups
        push!(blocks, Block(g, first_edge, stride, NO_EDGES, NO_EDGES))
        first_edge += length(members[g].units)
    end
    return blocks
end
