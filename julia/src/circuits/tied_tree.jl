# Markov trees over the positions of a grid whose transitions are tied by direction: many states, few parameters.

"""
    tied_tree(parent, class, root, transitions) -> (circuit, ties)

The Markov tree over `parent` (see [`hclt`](@ref)), each of whose variables has S values: the root is b with probability `root[b]`, and
variable i, whose parent is a, with `transitions[b, a, class[i]]`. `ties`: of each edge, the number of the transition whose
probability it has ([`Ties`](@ref)); 0 for the root's and for products'.
"""
function tied_tree(parent::AbstractVector{<:Integer}, class::AbstractVector{<:Integer}, root::AbstractVector{<:Real},
                   transitions::AbstractArray{<:Real,3})
    V, S = length(parent), length(root)
    check_hclt(V, S, S, 1)
    size(transitions)[1:2] == (S, S) || throw(ArgumentError("transitions: found $(size(transitions)), wanted tables of $S states"))
    subtrees = [Int[] for _ in 1:V]
    for i in 1:V
        if parent[i] != 0
            push!(subtrees[parent[i]], i)
            1 <= class[i] <= size(transitions, 3) || throw(ArgumentError("class: found $(class[i]), wanted 1..$(size(transitions, 3))"))
        end
    end
    top = findfirst(iszero, parent)
    order = breadth_first(subtrees, top)
    length(order) == V || throw(ArgumentError("parent: found no tree"))
    b, of_sums = Builder(V, hclt_size(V, S, S, 1)...), Int32[]
    messages = Vector{UnitRange{Int}}(undef, V)
    for i in reverse(order)
        states = add_indicators!(b, i, 0:S - 1, S)
        if !isempty(subtrees[i])
            for k in 1:S
                add_product!(b, [states[k]; [messages[j][k] for j in subtrees[i]]])
            end
            states = last_units(b, S)
        end
        for a in 1:(i == top ? 1 : S)
            add_sum!(b, states, i == top ? root : view(transitions, :, a, class[i]))
            append!(of_sums, i == top ? fill(0, S) : ((class[i] - 1) * S + a - 1) * S .+ (1:S))
            pause(10 + 4 * S)
        end
        messages[i] = last_units(b, i == top ? 1 : S)
    end
    circuit = Circuit(b, messages[top])
    ties = zeros(Int32, length(circuit.weight))
    place = 0
    for u in 1:num_units(circuit)
        circuit.kind[u] == SUM || continue
        ties[edges(circuit, u)] = of_sums[place + 1:place + S]
        place += S
    end
    return circuit, ties
end
