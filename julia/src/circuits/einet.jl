# Einsum networks (Peharz et al. 2020a): regions whose partitions have sums of their own, over all pairs of units of their two parts.

"""
    einet(; num_vars, depth, replicas, num_sums, num_cats, leaves = [Leaf(num_cats)], heads = 1, perturbation = 0.4, seed = 0) -> Circuit
    einet(; shape, steps, num_sums, num_cats, ...) -> Circuit

The EiNet over a [`random_region_graph`](@ref), or over a [`grid_region_graph`](@ref) of images of `shape` (height, width, channels). A
region that is not cut has `num_sums` factorised distributions: products of one input for each of its variables, of the kind that [`leaves`](@ref Leaf) say.
Each partition of another region has `num_sums` sums over all products of a unit of the one part and one of the other (an einsum layer);
where there are several partitions, unit k of the region is a sum over their units k (the mixing layer). The whole has `heads` units. Every
parameter starts in proportion to U(1 - perturbation, 1 + perturbation); a binomial's probability of success spreads around 1/2.
"""
function einet(; num_sums::Integer, num_cats::Integer, leaves::AbstractVector{Leaf}=[Leaf(num_cats)], heads::Integer=1,
               perturbation::Real=0.4, seed::Integer=0, graph...)
    start = Starter(seed, perturbation)
    sizes = (num_sums=num_sums, num_cats=num_cats, heads=heads)
    check_positive(; sizes...)
    regions = region_graph(start.rng, sizes; graph...)
    counts = [r == 1 ? heads : num_sums for r in eachindex(regions)]
    size, num_vars = einet_size(regions, counts, num_sums, num_cats), length(regions[1].scope)
    check_leaves(leaves, num_vars)
    check_room(named(; graph..., sizes...), size...)
    b = Builder(num_vars, size...)
    inputs = add_region_inputs!(b, start, regions, num_sums, leaves)
    units = Vector{UnitRange{Int}}(undef, length(regions))
    for r in sortperm([length(region.scope) for region in regions])  # parts before wholes
        if isempty(regions[r].partitions)
            own = add_factorised!(b, inputs[r])
            units[r] = r > 1 ? own : add_sums!(b, start, own, counts[r])  # a single region: heads mix its distributions
        else
            einsums = [add_sums!(b, start, add_pairs!(b, [parts], units), counts[r]) for parts in regions[r].partitions]
            units[r] = length(einsums) == 1 ? einsums[1] : add_mixing!(b, start, einsums)
        end
    end
    return Circuit(b, units[1])
end

"The graph that the parameters say, unless there is no memory for it, or for the products that a circuit of such `sizes` has at the least."
function region_graph(rng, sizes; shape=nothing, steps=nothing, num_vars=nothing, depth=nothing, replicas=nothing)
    if shape === nothing
        check_positive(; num_vars=num_vars, depth=depth, replicas=replicas)
        check_random_graph(; num_vars=num_vars, depth=depth, replicas=replicas, sizes...)
        return random_region_graph(rng, num_vars, depth, replicas)
    end
    check_positive(; height=shape[1], width=shape[2], channels=shape[3])
    isempty(steps) && throw(ArgumentError("steps: found none, wanted at least one"))
    all(>=(1), steps) || throw(ArgumentError("steps = $steps: want at least 1"))
    partitions, entries = grid_size(shape, steps)
    what = named(; shape=shape, steps=steps, sizes...)
    check_memory(what, "a graph of regions", sizeof(Int) * (8 * partitions + entries))
    check_room(what, partitions * Float64(sizes.num_sums)^2, 0, 0)  # all parts are regions below the whole
    return grid_region_graph(shape, steps)
end

"`count` sums over all of `children`."
function add_sums!(b::Builder, start::Starter, children, count)
    for _ in 1:count
        add_sum!(b, children)
    end
    return filled_in!(b, start, count)
end

"Sum k mixes the k-th units of all `parts`."
function add_mixing!(b::Builder, start::Starter, parts)
    for k in eachindex(parts[1])
        add_sum!(b, [part[k] for part in parts])
    end
    return filled_in!(b, start, length(parts[1]))
end

function filled_in!(b, start, count)
    fill_in!(start, (weights(b, u) for u in last_units(b, count)))
    return last_units(b, count)
end

"Units, edges and entries of tables, where region r has `counts[r]` units for others to use."
function einet_size(regions, counts, num_sums, categories)
    units, edges, entries = 0.0, 0.0, 0.0
    for (r, region) in enumerate(regions)
        scope, own = Float64(length(region.scope)), Float64(counts[r])
        if isempty(region.partitions)
            units += num_sums * (scope + 1) + (r == 1) * own
            edges += num_sums * scope + (r == 1) * own * num_sums
            entries += num_sums * scope * categories
        end
        for (i, j) in region.partitions
            pairs = counts[i] * Float64(counts[j])
            units += pairs + own
            edges += pairs * (2 + own)
        end
        length(region.partitions) > 1 && (units += own; edges += own * length(region.partitions))
    end
    return units, edges, entries
end
