# The schedule as tables for kernels: groups level by level, and what each launch needs to know of its groups, units and edges.

"Of a table of one launch, how many it is for."
count_of(table) = length(first(table))

"""
One level: the groups that need only groups of lower levels. `products`, `pairs` and `sums` are tables over the level's groups, `gather` over its
units that products have for factors; `batches` are the blocks of its sum groups.
"""
struct Level
    products::Tuple     # groups, first, width, nested, factors, child, child_first, place, index, largest
    pairs::Tuple        # groups, and of the slow and the fast units: group, first, count, largest
    sums::Tuple         # groups, first, width, blocks, child, terms
    gather::Tuple       # column, start, parent
    batches::Vector{Any}
end

function group_levels(schedule::Schedule)
    level = zeros(Int, length(schedule.groups))
    for (gi, g) in enumerate(schedule.groups)
        for f in g.factors
            level[gi] = max(level[gi], level[f.child] + 1)
        end
        for b in g.blocks
            level[gi] = max(level[gi], level[b.child] + 1)
        end
    end
    return level
end

"The first column of each group, less 1: every unit whose value is kept has one, in the order of work."
function first_columns(schedule::Schedule)
    first, next = zeros(Int32, length(schedule.groups)), 0
    for (gi, g) in enumerate(schedule.groups)
        first[gi] = next
        next += kept_width(g)
    end
    return first, next
end

"""
All levels, from the inputs' up; `place!` puts an array of integers or numbers where kernels are, and `limit` is how many columns the children
of a batch may take.
"""
function levels_of(place!, schedule::Schedule, first::Vector{Int32}, limit::Int)
    groups, level = schedule.groups, group_levels(schedule)
    parents = product_parents(schedule, first)
    return map(0:maximum(level)) do l
        own = findall(==(l), level)
        products = filter(gi -> groups[gi].kind == PRODUCT && groups[gi].pairs === nothing, own)
        pairs = filter(gi -> groups[gi].pairs !== nothing, own)
        sums = filter(gi -> groups[gi].kind == SUM, own)
        Level(place!.(product_table(schedule, first, products)), place!.(pair_table(schedule, first, pairs)),
              place!.(sum_table(schedule, first, sums)), place!.(gather_table(schedule, first, own, parents)),
              batches_of(place!, schedule, first, sums, limit))
    end
end

function product_table(schedule, first, own)
    groups = schedule.groups
    factors, child, child_first, place, index, largest = Int32[1], Int32[], Int32[], Int32[], Int32[], Float32[]
    for gi in own
        for f in groups[gi].factors
            push!(child, f.child)
            push!(child_first, first[f.child])
            push!(place, f.identity ? -1 : length(index))
            append!(index, f.index)
            push!(largest, largest_value(groups[f.child]))
        end
        push!(factors, length(child) + 1)
    end
    nested = Bool[groups[gi].nested for gi in own]
    return (Int32.(own), first[own], Int32[width(groups[gi]) for gi in own], nested, factors, child, child_first, place, index, largest)
end

function pair_table(schedule, first, own)
    groups, pairs = schedule.groups, [schedule.groups[gi].pairs for gi in own]
    side(child, units) = (Int32[child(p) for p in pairs], Int32[first_pair_column(first, child(p), units(p)) for p in pairs],
                          Int32[length(units(p)) for p in pairs], Float32[largest_value(groups[child(p)]) for p in pairs])
    return (Int32.(own), side(p -> p.slow_group, p -> p.slow)..., side(p -> p.fast_group, p -> p.fast)...)
end

"The column, less 1, of the first of some units of a group."
first_pair_column(columns, gi, units) = columns[gi] + Int32(first(units) - 1)

function sum_table(schedule, first, own)
    groups = schedule.groups
    blocks, child, terms = Int32[1], Int32[], Float32[]
    for gi in own
        append!(child, [b.child for b in groups[gi].blocks])
        push!(blocks, length(child) + 1)
        push!(terms, sum(width(groups[b.child]) for b in groups[gi].blocks))
    end
    return (Int32.(own), first[own], Int32[width(groups[gi]) for gi in own], blocks, child, terms)
end

"Of each column: the columns of the products that have it for a factor."
function product_parents(schedule::Schedule, first)
    parents = Dict{Int32,Vector{Int32}}()
    for (gi, g) in enumerate(schedule.groups), f in (g.pairs === nothing ? g.factors : Factor[]), k in 1:width(g)
        push!(get!(() -> Int32[], parents, first[f.child] + Int32(f.identity ? k : f.index[k])), first[gi] + k)
        pause(10)
    end
    return parents
end

function gather_table(schedule, first, own, parents)
    column, start, parent = Int32[], Int32[1], Int32[]
    for gi in own, k in 1:kept_width(schedule.groups[gi])
        found = get(parents, first[gi] + Int32(k), nothing)
        found === nothing && continue
        push!(column, first[gi] + k)
        append!(parent, found)
        push!(start, length(parent) + 1)
    end
    return (column, start, parent)
end

"Of all input units: their column, variable, and where their parameters lie; those of the kind, or of any."
function input_table(schedule::Schedule, first, wanted=isinput)
    c, column, units = schedule.circuit, Int32[], Int32[]
    for (gi, g) in enumerate(schedule.groups)
        wanted(g.kind) || continue
        append!(column, first[gi] .+ (1:width(g)))
        append!(units, g.units)
    end
    return (column, c.variable[units], c.param_start[units], c.param_stride[units]), c.categories[units]
end

"""
The groups of inputs whose small values have lost digits: binomials, in their tables; and all under soft evidence, which are sums over
the categories, small only where no category that the evidence allows is likely.
"""
function small_inputs(schedule::Schedule, first, soft::Bool)
    own = findall(g -> g.kind == BINOMIAL || (soft && isinput(g.kind)), schedule.groups)
    return (Int32.(own), first[own], Int32[width(schedule.groups[gi]) for gi in own])
end
