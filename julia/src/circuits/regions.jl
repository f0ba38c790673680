# Region graphs: what RAT-SPNs and EiNets are built over. A region is a set of variables; a partition cuts it in two.

"A region: a set of variables, sorted, and its partitions, each a pair of regions (their indices, the smaller first)."
struct Region
    scope::Vector{Int}
    partitions::Vector{Tuple{Int,Int}}
end

"""
The random region graph of Peharz et al. 2019, algorithm 1: `replicas` times, all variables are cut into random halves, these into
halves, and so on `depth` times or down to single variables. Regions are sets: where two cuts meet in one scope, they share the
region, and it has the partitions of both. The first region is the whole.
"""
function random_region_graph(rng::SplitMix, num_vars::Integer, depth::Integer, replicas::Integer)
    regions, index = Region[], Dict{Vector{Int},Int}()
    whole = region!(regions, index, collect(1:num_vars))
    for _ in 1:replicas
        cut!(regions, index, rng, whole, depth)
        pause(1)
    end
    return regions
end

"Throws an `ArgumentError`, which names all parameters, where there is no memory for such a graph."
function check_random_graph(; num_vars, depth, replicas, others...)
    entries = Float64(replicas) * num_vars * min(depth, 1 + log2(num_vars))  # of the regions' scopes, in all
    check_memory(named(; num_vars=num_vars, depth=depth, replicas=replicas, others...), "a graph of regions", 2 * sizeof(Int) * entries)
end

"The region over `scope`, made if it is new."
function region!(regions, index, scope)
    haskey(index, scope) && return index[scope]
    push!(regions, Region(scope, Tuple{Int,Int}[]))
    return index[scope] = length(regions)
end

function cut!(regions, index, rng, r, depth)
    region = regions[r]
    (depth == 0 || length(region.scope) == 1) && return
    order, half = shuffle!(rng, copy(region.scope)), length(region.scope) ÷ 2
    parts = (region!(regions, index, sort(order[1:half])), region!(regions, index, sort(order[half + 1:end])))
    partition = minmax(parts...)
    partition in region.partitions || push!(region.partitions, partition)
    pause(100 * length(region.scope))
    for part in parts
        cut!(regions, index, rng, part, depth - 1)
    end
end

"""
    grid_region_graph((height, width, channels), steps)

The region graph of Poon and Domingos 2011 over the pixels of an image, all channels of a pixel together: rectangles, cut in two in every
way, across and along, at the multiples of a step. A rectangle is cut at the first of `steps` that has a multiple within it, and not at
all where none has. The first region is the whole image. Variables are the channels, pixel by pixel, row by row.
"""
function grid_region_graph(shape::NTuple{3,Integer}, steps)
    height, width, channels = Int.(shape)
    boxes, index, cuts = [(0, height, 0, width)], Dict((0, height, 0, width) => 1), Vector{Tuple{Int,Int}}[]
    while length(cuts) < length(boxes)
        top, bottom, left, right = boxes[length(cuts) + 1]
        parts = Tuple{Int,Int}[]
        step = findfirst(s -> has_multiple(s, top, bottom) || has_multiple(s, left, right), steps)
        if step !== nothing
            for y in multiples(steps[step], top, bottom)
                push!(parts, (box!(boxes, index, (top, y, left, right)), box!(boxes, index, (y, bottom, left, right))))
            end
            for x in multiples(steps[step], left, right)
                push!(parts, (box!(boxes, index, (top, bottom, left, x)), box!(boxes, index, (top, bottom, x, right))))
            end
        end
        push!(cuts, minmax.(first.(parts), last.(parts)))
        pause(100 * (1 + length(parts)))
    end
    return map((box, parts) -> (pause(10); Region(box_scope(box, width, channels), parts)), boxes, cuts)
end

"""
    grid_size((height, width, channels), steps) -> (partitions, entries)

How many partitions a [`grid_region_graph`](@ref) has, and how many entries the scopes of its regions, in Float64: nothing is made for it.
"""
function grid_size(shape::NTuple{3,Integer}, steps)
    partitions, entries = box_size((0, Int(shape[1]), 0, Int(shape[2])), steps)
    return partitions, entries * shape[3]
end

function box_size(box, steps)
    top, bottom, left, right = box
    at = findfirst(s -> has_multiple(s, top, bottom) || has_multiple(s, left, right), steps)
    at === nothing && return 0.0, Float64(bottom - top) * (right - left)
    rows, columns = cells(steps[at], top, bottom), cells(steps[at], left, right)
    partitions = cut_count(length(rows)) * interval_count(length(columns)) + cut_count(length(columns)) * interval_count(length(rows))
    entries = interval_lengths(rows) * interval_lengths(columns)
    for (y, y2) in rows, (x, x2) in columns
        own, inner = box_size((y, y2, x, x2), steps[at + 1:end])
        partitions += own
        entries += inner - Float64(y2 - y) * (x2 - x)  # the cell itself is counted once
    end
    return partitions, entries
end

"What lies between two edges, and the multiples of a step."
function cells(step, low, high)
    edges = vcat(low, multiples(step, low, high), high)
    return collect(zip(edges[1:end - 1], edges[2:end]))
end

# Of n cells in a row: the intervals of them, their cuts in two, and their lengths, added up.
interval_count(n) = n * (n + 1.0) / 2
cut_count(n) = (n - 1.0) * n * (n + 1) / 6
interval_lengths(cells) = sum(Float64[(high - low) * i * (length(cells) - i + 1.0) for (i, (low, high)) in enumerate(cells)])

"The multiples of `step` between two edges of a rectangle."
multiples(step, low, high) = (low ÷ step + 1) * step:step:high - 1
has_multiple(step, low, high) = !isempty(multiples(step, low, high))

"The number of a rectangle, (top, bottom, left, right), given if it is new."
function box!(boxes, index, box)
    haskey(index, box) && return index[box]
    push!(boxes, box)
    return index[box] = length(boxes)
end

box_scope((top, bottom, left, right), width, channels) =
    [((y * width) + x) * channels + c for y in top:bottom - 1 for x in left:right - 1 for c in 1:channels]
