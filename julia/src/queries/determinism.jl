# Whether at most one child of each sum is possible at a time.

"""
    is_deterministic(circuit, others...) -> Bool

Whether the supports of any two children of each sum that a head reaches are seen to be disjoint: there is a variable that cannot have a value in
common. Edges of weight 0 do not count. With `others`, circuits of the same structure, what is possible in any of them is possible: the
choices then follow from the values in the same way in all of them.

Sound, and no more: a support is taken for the product of those of its variables, so that of a circuit whose children are disjoint only by several
variables together the answer is no, too.
"""
function is_deterministic(c::Circuit, others::Circuit...)
    every = (c, others...)
    kept = fill(false, num_edges(c))
    for u in 1:num_units(c), e in edges(c, u)
        kept[e] = any(own -> own.weight[e] > 0, every)
        pause(2)
    end
    reached = reachable(c, c.heads, kept)
    ids = Dict{Any,Int}()           # sets of values, by what is in them
    sets = BitSet[]                 # of each id
    told = telling_variables(c, reached, every)
    support = [NO_SUPPORT for _ in 1:num_units(c)]
    for u in 1:num_units(c)
        pause(20 + 10 * length(edges(c, u)))
        reached[u] || continue
        if isinput(c.kind[u])
            told[c.variable[u]] && (support[u] = [Int(c.variable[u]) => set_id!(ids, sets, values_of(every, u))])
            continue
        end
        below = [child(c, u, e) for e in edges(c, u) if kept[e]]
        if c.kind[u] == PRODUCT
            support[u] = sort!(reduce(vcat, support[below]; init=Pair{Int,Int}[]))
        else
            disjoint(support[below], sets) || return false
            support[u] = length(below) == 1 ? support[below[1]] : joined(support[below], ids, sets)
        end
    end
    return true
end

const NO_SUPPORT = Pair{Int,Int}[]

"The values that input `u` can have, in any of the circuits; nothing stands for all."
function values_of(every, u)
    found = BitSet()
    for c in every
        has_table(c.kind[u]) || return nothing
        for k in 0:c.categories[u] - 1
            log_probability(c, u, k) > -Inf && push!(found, k)
        end
    end
    return length(found) == every[1].categories[u] ? nothing : found
end

"The variables that some input cannot have all values of: others tell no two units apart."
function telling_variables(c::Circuit, reached, every)
    found = fill(false, c.num_vars)
    for u in 1:num_units(c)
        isinput(c.kind[u]) && reached[u] && !found[c.variable[u]] && (found[c.variable[u]] = values_of(every, u) !== nothing)
        pause(10 + 10 * Int(c.categories[u]))
    end
    return found
end

"The number of a set of values, 0 for all of them."
function set_id!(ids, sets, found)
    found === nothing && return 0
    return get!(ids, found) do
        push!(sets, found)
        length(sets)
    end
end

"Whether of each two of these supports, lists of (variable, set), some variable's sets have nothing in common."
function disjoint(supports, sets)
    for i in 2:length(supports), j in 1:i - 1
        apart = any(zip(supports[i], supports[j])) do (one, other)
            one[2] > 0 && other[2] > 0 && isempty(intersect(sets[one[2]], sets[other[2]]))
        end
        apart || return false
        pause(10 * length(supports[i]))
    end
    return true
end

"For each variable what is possible in any of the supports."
function joined(supports, ids, sets)
    return map(eachindex(supports[1])) do at
        numbers = [own[at][2] for own in supports]
        variable = supports[1][at][1]
        0 in numbers ? variable => 0 : variable => set_id!(ids, sets, reduce(union, (sets[number] for number in numbers)))
    end
end
