# The schedule: a circuit's groups in the order of work, with the factors and blocks between them. It says what is to be computed;
# where a backend keeps the values is the backend's business (cpu/columns.jl).

"""
    Schedule(circuit; fuse = true)

The order of work for a circuit: groups, children before parents, and the blocks and factors between them. `fuse`: sums over all pairs of
two groups' units go by the two groups ([`Pairs`](@ref)); without, by the products' values, which is slower.

Throws an `ArgumentError` that names the unit for a sum over different scopes or a product over overlapping ones.
"""
struct Schedule
    circuit::Circuit
    groups::Vector{Group}
    head_group::Vector{Int32}   # of each head: its group, and its place in it
    head_place::Vector{Int32}
    widest::Int                 # units of the largest group whose values are kept
    limits::Vector{Int32}       # of each variable: its number of categories (0 where no input looks at it)
end

function Schedule(c::Circuit; fuse::Bool=true)
    group_of, place, members = ordered_groups(c)
    factors = [m.kind == PRODUCT ? product_factors(c, m.units, group_of, place, members) : Factor[] for m in members]
    blocks = [m.kind == SUM ? sum_blocks(c, m.units, group_of, place, members) : Block[] for m in members]
    pairs = fuse ? pairs_of_groups(factors, blocks, group_of[c.heads]) : fill(nothing, length(members))
    nested = falses(length(members))
    for own in factors, f in own
        nested[f.child] = members[f.child].kind == PRODUCT
    end
    groups = Group[]
    for (gi, m) in enumerate(members)
        u = m.units[1]
        push!(groups, Group(m.kind, m.units, c.variable[u], c.categories[u], c.param_start[u], c.param_stride[u], factors[gi],
                            blocks[gi], pairs[gi], nested[gi]))
    end
    return Schedule(c, groups, group_of[c.heads], place[c.heads], maximum(kept_width, groups), category_limits(c))
end
