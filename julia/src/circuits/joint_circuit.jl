# The joint model p(x) = sum_z p(z) prod_i p(x_i | z_i) (Liu et al. 2023, section 3), written out as one circuit.

"""
    places(circuits, positions; tied = true) -> [(positions, values), ...]

Of each patch circuit, the positions that it is for, and the values of their latents that its heads are. Tied circuits are for all
positions. Others are those of the first position, of the second and so on, with as many heads at each. Throws an
`ArgumentError` where that is not so.
"""
function places(circuits::AbstractVector{Circuit}, positions::Integer; tied::Bool=true)
    found, groups, position, first = Tuple{UnitRange{Int},UnitRange{Int}}[], tied ? 1 : positions, 1, 1
    values, rest = divrem(sum(Int[num_heads(c) for c in circuits]), groups)
    for c in circuits
        last = first + num_heads(c) - 1
        rest == 0 && last <= values ||
            throw(ArgumentError("found other numbers of heads at some of the $positions positions, which are not tied"))
        push!(found, (tied ? (1:positions) : (position:position), first:last))
        position, first = last < values ? (position, last + 1) : (position + 1, 1)
    end
    return found
end

"""
    joint_circuit(prior, circuits, variables; tied = true) -> Circuit

The prior p(z) over positions, with the patch circuits p(x_i | z_i) below it: for each position i a copy of its circuits, all of
them where they are tied, else as [`places`](@ref) has it, over the variables `variables[:, i]`; `variables` is a matrix
(variables of a patch, positions) that holds 1, 2, ... each once. The values of z_i are the heads of these circuits, one circuit
after another. Instead of an input unit of the prior over position i there is a sum over position i's copies of the heads,
weighted by the input's probabilities; where that is 0, there is no edge.

First come the copies, position after position and circuit after circuit, each as its circuit lies, then the prior: units,
edges and the inputs' parameters are found again by counting. Throws an `ArgumentError` where the parts do not fit together.
"""
function joint_circuit(prior::Circuit, circuits::AbstractVector{Circuit}, variables::AbstractMatrix{<:Integer}; tied::Bool=true)
    where = places(circuits, prior.num_vars; tied=tied)
    check_parts(prior, circuits, variables, tied)
    b = room_for(circuits, "joint_circuit of $(prior.num_vars) positions"; times=[length(positions) for (positions, _) in where],
                 num_vars=length(variables), units=num_units(prior), edges=num_edges(prior) + Float64(length(prior.leaf)))
    heads = [reduce(vcat, [append_circuit!(b, c, view(variables, :, i)) for (c, (positions, _)) in zip(circuits, where)
                           if i in positions]) for i in 1:prior.num_vars]
    return Circuit(b, append_prior!(b, prior, heads))
end

"""
Copies a prior behind what is there. Instead of an input unit over position i there is a sum over the units `below[i]`, one for each
of its categories, weighted by its probabilities, without those of 0. Returns where the prior's heads are now.
"""
function append_prior!(b::Builder, prior::Circuit, below)
    unit = Vector{Int32}(undef, num_units(prior))  # where each unit of the prior is now
    for u in 1:num_units(prior)
        if isinput(prior.kind[u])
            unit[u] = add_possible!(b, below[prior.variable[u]], probabilities(prior, u))
        elseif prior.kind[u] == SUM
            unit[u] = add_sum!(b, view(unit, children(prior, u)), view(prior.weight, edges(prior, u)))
        else
            unit[u] = add_product!(b, view(unit, children(prior, u)))
        end
    end
    return unit[prior.heads]
end

"A sum over those children whose weight is not 0."
function add_possible!(b::Builder, children, weights)
    possible = findall(>(0), weights)
    return add_sum!(b, children[possible], weights[possible])
end

function check_parts(prior, circuits, variables, tied)
    isempty(circuits) && throw(ArgumentError("joint_circuit: found no circuits, wanted at least 1"))
    check_variables("joint_circuit", prior, variables)
    for (t, c) in enumerate(circuits)
        c.num_vars == size(variables, 1) ||
            throw(ArgumentError("joint_circuit: circuit $(t - 1) has $(c.num_vars) variables, a patch $(size(variables, 1))"))
    end
    values = sum(num_heads, circuits) ÷ (tied ? 1 : prior.num_vars)
    for (i, categories) in enumerate(category_limits(prior))
        categories == values ||
            throw(ArgumentError("joint_circuit: the prior has $categories categories at position $(i - 1), wanted $values: the heads"))
    end
end

"Throws an `ArgumentError` unless each position of the prior has its variables (those of a patch, positions), 1, 2, ... each once."
function check_variables(what, prior, variables)
    size(variables, 2) == prior.num_vars ||
        throw(ArgumentError("$what: found variables of $(size(variables, 2)) positions, the prior has $(prior.num_vars)"))
    sort(vec(variables)) == 1:length(variables) ||
        throw(ArgumentError("$what: found variables that are not each of 1..$(length(variables)) once"))
end

"`variables` counts from 0; circuits are handles, which cross the boundary one by one."
joint_circuit_of(prior, variables, tied, circuits...) = joint_circuit(prior, collect(Circuit, circuits), variables .+ 1; tied=tied)
