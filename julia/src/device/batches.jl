# Blocks that can run at once and have one shape, together: a launch or a batch of matrix products, however many groups there are.

"""
Dense blocks of one shape: `width` sums of each of some groups over `inputs` units, or `pairs` (of so many slow and fast units), of a child
group each. `sums` has the column, the group and the child group of each sum; `children` the column of each unit of the child groups, or of
pairs the column, less 1, of each block's first slow and first fast unit. `alone`: the groups have no other block; `adds`: they had one before.
"""
struct DenseBatch
    members::Vector{Tuple{Int,Block}}
    width::Int
    inputs::Int
    pairs::Union{Nothing,Tuple{Int,Int}}
    alone::Bool
    adds::Bool
    sums::Tuple
    children::Tuple
end

"Sparse blocks, of any shape: `place` has the column that each sum's value goes to; the edges of all lead to columns and to places in the weights."
struct SparseBatch
    alone::Bool
    adds::Bool
    sums::Tuple         # column, group, child of each sum
    place::Tuple
    of_sums::Tuple      # start, column of the child, edge
    of_children::Tuple  # column of each unit of the child groups; start, number of the sum, edge
end

"Inputs under soft evidence: groups of one shape, each of another variable. `again`: others of these variables came before; `learns`: they have parameters."
struct EvidenceBatch
    groups::Vector{Int}
    again::Bool
    learns::Bool
    units::Tuple        # the column of each unit
end

"A batch in the making: what it reads, so that no two of its blocks send flows to one unit, and how many columns its children take."
mutable struct Draft
    members::Vector{Tuple{Int,Block}}
    reads::Set{Int}
    columns::Int
end

"""
All blocks of a level's sum groups `own`, the first of each group before the second. Children of one batch, or pairs of them, take at most
`limit` columns.
"""
function batches_of(place!, schedule::Schedule, first::Vector{Int32}, own::Vector{Int}, limit::Int)
    groups, batches = schedule.groups, Any[]
    for b in 1:maximum(Int[0; [length(groups[gi].blocks) for gi in own]])
        drafts, order = Dict{Any,Vector{Draft}}(), Any[]
        for gi in own
            b <= length(groups[gi].blocks) || continue
            block = groups[gi].blocks[b]
            key = shape_of(groups, groups[gi], block)
            haskey(drafts, key) || push!(order, key)
            add_to!(get!(() -> Draft[], drafts, key), groups, gi, block, limit)
            pause(100)
        end
        for key in order, draft in drafts[key]
            push!(batches, batch_of(place!, schedule, first, draft.members, key, b > 1))
        end
    end
    return batches
end

"Blocks that agree in this can be one batch; also in whether their weights lie without gaps, as a GPU's batches of products want them."
function shape_of(groups, g::Group, block::Block)
    alone, child = length(g.blocks) == 1, groups[block.child]
    isdense(block) || return (alone,)
    return (alone, width(g), width(child), child.pairs === nothing ? nothing : pair_sizes(child.pairs), block.stride == width(child))
end

function add_to!(drafts::Vector{Draft}, groups, gi::Int, block::Block, limit::Int)
    reads, columns = read_groups(groups, block), width(groups[block.child])
    at = findfirst(d -> d.columns + columns <= limit && !any(in(d.reads), reads), drafts)
    if at === nothing
        push!(drafts, Draft(Tuple{Int,Block}[], Set{Int}(), 0))
        at = length(drafts)
    end
    draft = drafts[at]
    push!(draft.members, (gi, block))
    union!(draft.reads, reads)
    draft.columns += columns
    return nothing
end

function batch_of(place!, schedule, first, members, shape::Tuple{Bool,Int,Int,Any,Bool}, adds::Bool)
    alone, own_width, inputs, pairs, _ = shape
    children = pairs === nothing ? (child_columns(schedule, first, members),) : pair_firsts(schedule, first, members)
    return DenseBatch(members, own_width, inputs, pairs, alone, adds, place!.(sum_items(schedule, first, members)), place!.(children))
end

function batch_of(place!, schedule, first, members, shape::Tuple{Bool}, adds::Bool)
    sums = sum_items(schedule, first, members)
    place = shape[1] ? sums[1] : collect(Int32(1):Int32(length(sums[1])))
    of_sums, of_children, done = (Int32[1], Int32[], Int32[]), (Int32[1], Int32[], Int32[]), 0
    for (gi, block) in members
        append_edges!(of_sums, block.of_sums, Int(first[block.child]), block.first)
        append_edges!(of_children, block.of_children, done, block.first)
        done += width(schedule.groups[gi])
    end
    return SparseBatch(shape[1], adds, place!.(sums), (place!(place),), place!.(of_sums), place!.((child_columns(schedule, first, members), of_children...)))
end

"The list's edges behind those that are there: `shift` is added to where they lead, `weights` to their places."
function append_edges!(lists, list::EdgeList, shift::Int, weights::Int)
    start, index, edge = lists
    append!(start, Iterators.drop(list.start, 1) .+ (last(start) - list.start[1]))
    append!(index, list.index .+ shift)
    append!(edge, list.edge .+ weights)
    return nothing
end

function sum_items(schedule, first, members)
    column, group, child = Int32[], Int32[], Int32[]
    for (gi, block) in members, k in 1:width(schedule.groups[gi])
        push!(column, first[gi] + k)
        push!(group, gi)
        push!(child, block.child)
    end
    return column, group, child
end

child_columns(schedule, first, members) =
    Int32[first[block.child] + j for (_, block) in members for j in 1:width(schedule.groups[block.child])]

function pair_firsts(schedule, first, members)
    pairs = [schedule.groups[block.child].pairs for (_, block) in members]
    return (Int32[first_pair_column(first, p.slow_group, p.slow) for p in pairs], Int32[first_pair_column(first, p.fast_group, p.fast) for p in pairs])
end

"Groups of inputs by shape, so that no batch has a variable twice, and the first group of each comes before its others."
function evidence_batches(place!, schedule::Schedule, first::Vector{Int32})
    seen, found = zeros(Int, schedule.circuit.num_vars), Dict{Tuple{Int,Bool,Int,Int,Bool},Vector{Int}}()
    for (gi, g) in enumerate(schedule.groups)
        isinput(g.kind) || continue
        seen[g.variable] += 1
        shape = (seen[g.variable], num_input_params(g.kind, g.categories) > 0, width(g), Int(g.categories), g.param_stride == width(g))
        push!(get!(() -> Int[], found, shape), gi)
    end
    return map(sort(collect(keys(found)))) do key
        columns = Int32[first[gi] + k for gi in found[key] for k in 1:width(schedule.groups[gi])]
        EvidenceBatch(found[key], key[1] > 1, key[2], (place!(columns),))
    end
end
