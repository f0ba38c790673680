# The schedule: a circuit's groups in the order of work, with the factors and blocks between them. It says what is to be computed;
# where a backend keeps the values is the backend's business (cpu/columns.jl).

"""
    Schedule(circuit)

The order of work for a circuit: groups, children before parents, and the blocks and factors between them.

Throws an `ArgumentError` that names the unit for a sum over different scopes or a product over overlapping ones.
"""
struct Schedule
    circuit::Circuit
    groups::Vector{Group}
    head_group::Vector{Int32}   # of each head: its group, and its place in it
    head_place::Vector{Int32}
    widest::Int                 # units of the largest group
    limits::Vector{Int32}       # of each variable: its number of categories (0 where no input looks at it)
end

function Schedule(c::Circuit)
    group_of, place, members = ordered_groups(c)
    groups = Group[]
    for m in members
        u = m.units[1]
        push!(groups, Group(m.kind, m.units, c.variable[u], c.categories[u], c.param_start[u], c.param_stride[u],
                            m.kind == PRODUCT ? product_factors(c, m.units, group_of, place, members) : Factor[],
                            m.kind == SUM ? sum_blocks(c, m.units, group_of, place, members) : Block[]))
    end
    return Schedule(c, groups, group_of[c.heads], place[c.heads], maximum(width(g) for g in groups), category_limits(c))
end
